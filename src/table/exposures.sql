SELECT credential, event_time AS exposed_at, 'report' AS kind, reporter, location, account_id, event_id, append_time
FROM exposure_reports
WHERE credential IS NOT NULL
UNION ALL
SELECT access_key_id AS credential, event_time AS exposed_at, 'quarantine' AS kind, 'aws' AS reporter,
       coalesce(policy_arn, policy_name) AS location, account_id, event_id, append_time
FROM cloudtrail
WHERE event_name IN ('AttachUserPolicy', 'AttachRolePolicy', 'AttachGroupPolicy', 'PutUserPolicy')
  AND (policy_arn LIKE '%AWSCompromisedKeyQuarantine%' OR policy_name LIKE 'AWSCompromisedKeyQuarantine%'
       OR policy_name LIKE 'AWSExposedCredentialPolicy%')
  AND access_key_id IS NOT NULL AND user_name = target_user_name AND outcome = 'success'
