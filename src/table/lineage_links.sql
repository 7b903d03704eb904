SELECT coalesce(minted_access_key_id, target_access_key_id) AS child, access_key_id AS parent, event_time AS minted_at, event_id
FROM cloudtrail
WHERE outcome = 'success' AND access_key_id IS NOT NULL
  AND (minted_access_key_id IS NOT NULL OR (event_name = 'CreateAccessKey' AND target_access_key_id IS NOT NULL))
