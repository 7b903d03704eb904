SELECT p.approval, p.identity, r.data_source, date_bin(INTERVAL '1 day', r.event_time) AS day, count(*) AS retrievals, sum(r.documents) AS documents, sum(r.bytes) AS bytes
FROM retrievals r JOIN approvals p ON p.identity = r.identity
WHERE r.append_time >= p.valid_from AND r.append_time < p.valid_to AND listed(p.data_sources, r.data_source)
GROUP BY p.approval, p.identity, r.data_source, date_bin(INTERVAL '1 day', r.event_time)
