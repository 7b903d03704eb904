SELECT c.event_time, c.access_key_id, c.identity, c.source_ip, c.source_network, c.user_agent, c.event_name, c.outcome, c.aws_region, c.request_id,
       coalesce(m.model_id, c.model_id) AS model_id, m.agent_id, m.conversation_id, m.trace_id,
       coalesce(m.input_tokens, c.input_tokens) AS input_tokens, coalesce(m.output_tokens, c.output_tokens) AS output_tokens,
       m.cost_microdollars, m.stop_reason, m.guardrail, m.prompt_chars, m.output_chars, m.prompt_secrets, m.output_secrets,
       coalesce(m.told_by, 0) AS told_by, c.event_id
FROM cloudtrail c
LEFT JOIN (
  -- An invocation log and a span may both tell of one call.
  SELECT request_id, max(model_id) AS model_id, max(agent_id) AS agent_id, max(conversation_id) AS conversation_id, max(trace_id) AS trace_id,
         max(input_tokens) AS input_tokens, max(output_tokens) AS output_tokens, max(cost_microdollars) AS cost_microdollars, max(stop_reason) AS stop_reason,
         max(guardrail) AS guardrail, max(prompt_chars) AS prompt_chars, max(output_chars) AS output_chars, max(prompt_secrets) AS prompt_secrets,
         max(output_secrets) AS output_secrets, count(*) AS told_by
  FROM model_invocations WHERE request_id IS NOT NULL GROUP BY request_id) m ON m.request_id = c.request_id
WHERE c.event_source IN ('bedrock.amazonaws.com', 'bedrock-mantle.amazonaws.com')
  AND c.event_name IN ('InvokeModel', 'InvokeModelWithResponseStream', 'InvokeModelWithBidirectionalStream', 'Converse', 'ConverseStream', 'CreateInference')
