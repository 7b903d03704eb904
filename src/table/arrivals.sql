SELECT 'cloudtrail' AS source, coalesce(recipient_account_id, account_id) AS account_id, aws_region AS region, event_category AS kind, append_time FROM cloudtrail
UNION ALL SELECT 'model_invocations' AS source, account_id, region, provider AS kind, append_time FROM model_invocations
UNION ALL SELECT 'retrievals' AS source, account_id, NULL AS region, service_name AS kind, append_time FROM retrievals
UNION ALL SELECT 'tool_calls' AS source, account_id, NULL AS region, service_name AS kind, append_time FROM tool_calls
UNION ALL SELECT 'outbound_calls' AS source, NULL AS account_id, NULL AS region, service_name AS kind, append_time FROM outbound_calls
UNION ALL SELECT 'agent_spans' AS source, NULL AS account_id, NULL AS region, service_name AS kind, append_time FROM agent_spans
UNION ALL SELECT 'provider_activity' AS source, account_id, NULL AS region, provider AS kind, append_time FROM provider_activity
UNION ALL SELECT 'exposure_reports' AS source, NULL AS account_id, NULL AS region, reporter AS kind, append_time FROM exposure_reports WHERE reporter IS DISTINCT FROM 'keyfuse'