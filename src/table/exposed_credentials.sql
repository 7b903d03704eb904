SELECT credential, credential AS exposed_credential, exposed_at, kind, reporter, location, 0 AS depth, event_id
FROM exposures
UNION ALL
SELECT l.credential, e.credential AS exposed_credential, e.exposed_at, e.kind, e.reporter, e.location, l.depth, e.event_id
FROM exposures e JOIN lineage l ON l.ancestor = e.credential
WHERE l.left_at >= e.exposed_at - INTERVAL '60 seconds'
