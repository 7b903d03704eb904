SELECT c.event_time, c.access_key_id, c.identity, c.source_ip, c.source_network, c.user_agent, c.event_name, c.outcome, c.aws_region, c.request_id,
       coalesce(m.model_id, c.model_id) AS model_id, m.agent_id, m.conversation_id, m.trace_id,
       coalesce(m.input_tokens, c.input_tokens) AS input_tokens, coalesce(m.output_tokens, c.output_tokens) AS output_tokens,
       m.cost_microdollars, m.stop_reason, m.guardrail, m.prompt_chars, m.output_chars, m.prompt_secrets, m.output_secrets,
       m.event_id IS NOT NULL AS has_invocation_log, c.event_id
FROM cloudtrail c LEFT JOIN model_invocations m ON m.request_id = c.request_id
WHERE c.event_source IN ('bedrock.amazonaws.com', 'bedrock-mantle.amazonaws.com')
  AND c.event_name IN ('InvokeModel', 'InvokeModelWithResponseStream', 'InvokeModelWithBidirectionalStream', 'Converse', 'ConverseStream', 'CreateInference')
