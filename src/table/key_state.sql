SELECT target_access_key_id AS credential,
       CASE event_name WHEN 'CreateAccessKey' THEN 'created' WHEN 'DeleteAccessKey' THEN 'deleted' ELSE lower(target_key_status) END AS state,
       event_time AS since, access_key_id AS changed_with, identity AS changed_by, account_id, event_id, append_time
FROM cloudtrail
WHERE event_source = 'iam.amazonaws.com' AND event_name IN ('CreateAccessKey', 'UpdateAccessKey', 'DeleteAccessKey')
  AND target_access_key_id IS NOT NULL AND outcome = 'success'
UNION ALL
SELECT access_key_id AS credential, 'quarantined' AS state, event_time AS since, access_key_id AS changed_with,
       identity AS changed_by, account_id, event_id, append_time
FROM cloudtrail
WHERE event_name IN ('AttachUserPolicy', 'AttachRolePolicy', 'AttachGroupPolicy', 'PutUserPolicy')
  AND (policy_arn LIKE '%AWSCompromisedKeyQuarantine%' OR policy_name LIKE 'AWSCompromisedKeyQuarantine%'
       OR policy_name LIKE 'AWSExposedCredentialPolicy%')
  AND access_key_id IS NOT NULL AND user_name = target_user_name AND outcome = 'success'
