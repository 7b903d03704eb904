SELECT event_time, append_time, 'cloudtrail' AS source, concat_ws(' ', event_source, event_name) AS act, coalesce(model_id, resource_arn, target_user_name, target_role_arn) AS target, outcome,
       identity, access_key_id AS credential, workload AS agent_id, CAST(NULL AS VARCHAR) AS trace_id, session_name AS conversation_id, source_ip, source_network, user_agent, request_id, event_id
FROM cloudtrail
UNION ALL
SELECT event_time, append_time, 'model_invocations' AS source, concat_ws(' ', provider, operation) AS act, model_id AS target, outcome,
       identity, credential, agent_id, trace_id, conversation_id, source_ip, source_network, user_agent, request_id, event_id
FROM model_invocations
UNION ALL
SELECT event_time, append_time, 'retrievals' AS source, concat_ws(' ', store, operation) AS act, data_source AS target, outcome,
       identity, credential, agent_id, trace_id, conversation_id, source_ip, source_network, NULL AS user_agent, request_id, event_id
FROM retrievals
UNION ALL
SELECT event_time, append_time, 'tool_calls' AS source, concat_ws(' ', method, server) AS act, tool AS target, outcome,
       identity, credential, agent_id, trace_id, conversation_id, source_ip, source_network, client_name AS user_agent, request_id, event_id
FROM tool_calls
UNION ALL
SELECT event_time, append_time, 'outbound_calls' AS source, concat_ws(' ', method, path) AS act, host AS target, outcome,
       identity, NULL AS credential, agent_id, trace_id, conversation_id, source_ip, source_network, user_agent, NULL AS request_id, event_id
FROM outbound_calls
UNION ALL
SELECT event_time, append_time, 'agent_spans' AS source, concat_ws(' ', kind, 'ended') AS act, coalesce(workflow, agent_name) AS target, outcome,
       identity, credential, agent_id, trace_id, conversation_id, NULL AS source_ip, NULL AS source_network, NULL AS user_agent, NULL AS request_id, event_id
FROM agent_spans
UNION ALL
SELECT event_time, append_time, 'provider_activity' AS source, concat_ws(' ', provider, action) AS act, target, outcome,
       identity, credential, NULL AS agent_id, NULL AS trace_id, NULL AS conversation_id, source_ip, source_network, user_agent, NULL AS request_id, event_id
FROM provider_activity
UNION ALL
SELECT event_time, append_time, 'exposure_reports' AS source, concat_ws(' ', 'exposed:', reporter) AS act, location AS target, status AS outcome,
       identity, credential, agent_id, NULL AS trace_id, conversation_id, NULL AS source_ip, NULL AS source_network, NULL AS user_agent, NULL AS request_id, event_id
FROM exposure_reports
