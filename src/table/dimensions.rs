//! Dimensions: what an operator states about the own world. A row holds from `valid_from` until before `valid_to`;
//! columns that are lists hold a JSON array of texts, in which `prefix*` stands for all that start so (see `listed()`).

use super::*;

table!(agents, "Inventory of agents and services: what each one is, and what it may do. A list that is absent limits nothing; an empty one allows nothing.",
    max_delay: 0,
    looked_up_by: &[],
{
    AGENT_ID agent_id: Text "Id under which the agent appears in traces and tool calls.",
    IDENTITY identity: Text "Role or user that it acts with, as in `cloudtrail.identity`.",
    OWNER owner: Text "Who answers for it.",
    ENVIRONMENT environment: Word "Environment that it belongs to.",
    ROLES roles: Text "List of what it is: `agent`, `batch`, `serving`, `pipeline`, `gateway`, `auditor`, `shared` (by several agents), `human` (people take it).",
    TOOLS tools: Text "List of tools that it may call.",
    DATA_SOURCES data_sources: Text "List of indexes, knowledge bases, buckets that it may read.",
    MODELS models: Text "List of models that it may call.",
    REGIONS regions: Text "List of regions that it runs in.",
    SERVICES services: Text "List of event sources that it may call, such as `bedrock.amazonaws.com`.",
    NETWORKS networks: Text "List of networks that it calls from, as in `source_network`, or in CIDR form.",
    HOSTS hosts: Text "List of hosts that it may send to.",
    USER_AGENTS user_agents: Text "List of user agents that its runtime shows.",
    CREDENTIALS credentials: Text "List of long-lived keys that it is known to hold.",
    MAX_TOKEN_AGE_SECONDS max_token_age_seconds: Int "How old its sessions may get (seconds).",
    VALID_FROM valid_from: Time "From when this holds.",
    VALID_TO valid_to: Time "Until before when.",
});

table!(approvals, "Work approved in advance: batch jobs that may read more than usual, inside a scope and a window.",
    max_delay: 0,
    looked_up_by: &[],
{
    APPROVAL approval: Text "Ticket or name.",
    IDENTITY identity: Text "Who may.",
    DATA_SOURCES data_sources: Text "List of what may be read.",
    APPROVER approver: Text "Who approved it.",
    REASON reason: Text "Why.",
    VALID_FROM valid_from: Time "From when.",
    VALID_TO valid_to: Time "Until before when: an approval without an end is none.",
});

table!(expected_sources, "Logs that ought to arrive, as the view `arrivals` names them: COV-04 tells when one is silent, `keyfuse doctor` and `detection_health` which are.",
    max_delay: 0,
    looked_up_by: &[],
{
    SOURCE source: Word "Stream that the log fills, such as `cloudtrail`.",
    ACCOUNT_ID account_id: Text "Account that it is delivered in; absent: any.",
    REGION region: Text "Region; absent: any.",
    KIND kind: Text "Kind of log, such as `Data` of `cloudtrail`; absent: any.",
    SILENCE_SECONDS silence_seconds: Int "How long it may be silent (seconds): an hour where nothing is said, twelve at most.",
    OWNER owner: Text "Who answers for it.",
    VALID_FROM valid_from: Time "From when it is expected.",
    VALID_TO valid_to: Time "Until before when.",
});

table!(allow_list, "Accepted behaviour: findings that match stay silent. Applied to every detection by keyfuse itself; here to be asked about.",
    max_delay: 0,
    looked_up_by: &[],
{
    DETECTION detection: Text "Detection, or `*`.",
    COLUMN column: Text "Column of the finding that is compared.",
    VALUE value: Text "Text, `prefix*` or network.",
    OWNER owner: Text "Who answers for it.",
    REASON reason: Text "Why.",
    VALID_FROM valid_from: Time "From when.",
    VALID_TO valid_to: Time "Until before when.",
});
