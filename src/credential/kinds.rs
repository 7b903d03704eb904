//! The kinds of credentials that are recognised: their marks and shapes, from the providers' published formats.

use super::{Alphabet, CredentialKind, Place};

const fn prefix(name: &'static str, class: &'static str, mark: &'static str, alphabet: Alphabet, length: (usize, usize)) -> CredentialKind {
    CredentialKind { name, class, mark, alphabet, length, place: Place::Prefix }
}

const fn value_of(name: &'static str, class: &'static str, mark: &'static str, length: (usize, usize)) -> CredentialKind {
    CredentialKind { name, class, mark, alphabet: Alphabet::JsonString, length, place: Place::JsonKey }
}

/// A value that has no mark of its own: bound to the name of the setting that holds it.
const fn setting(name: &'static str, mark: &'static str, alphabet: Alphabet, length: (usize, usize)) -> CredentialKind {
    CredentialKind { name, class: "provider", mark, alphabet, length, place: Place::Setting }
}

/// A mark inside the secret; `before` says how much of it stands in front of the mark.
const fn inner(name: &'static str, mark: &'static str, before: (usize, usize), length: (usize, usize)) -> CredentialKind {
    CredentialKind { name, class: "provider", mark, alphabet: Alphabet::Token, length, place: Place::Inner(before.0, before.1) }
}

use Alphabet::{Alphanumeric, Base64, Hex, Token, TokenDot};

/// Most specific mark first where one contains another.
pub static KINDS: &[CredentialKind] = &[
    // Amazon
    prefix("bedrock_api_key_long", "bearer", "ABSK", Base64, (100, 300)),
    prefix("bedrock_api_key_short", "bearer", "bedrock-api-key-", Base64, (40, 2000)),
    value_of("aws_session_token", "session", "sessionToken", (16, 4000)),
    value_of("aws_session_token", "session", "SessionToken", (16, 4000)),
    value_of("aws_secret_access_key", "long_lived", "secretAccessKey", (16, 200)),
    value_of("aws_secret_access_key", "long_lived", "SecretAccessKey", (16, 200)),
    CredentialKind {
        name: "aws_secret_access_key",
        class: "long_lived",
        mark: "aws_secret_access_key",
        alphabet: Base64,
        length: (40, 40),
        place: Place::Setting,
    },
    CredentialKind {
        name: "aws_secret_access_key",
        class: "long_lived",
        mark: "AWS_SECRET_ACCESS_KEY",
        alphabet: Base64,
        length: (40, 40),
        place: Place::Setting,
    },
    CredentialKind { name: "aws_session_token", class: "session", mark: "AWS_SESSION_TOKEN", alphabet: Base64, length: (100, 2000), place: Place::Setting },
    CredentialKind { name: "aws_session_token", class: "session", mark: "aws_session_token", alphabet: Base64, length: (100, 2000), place: Place::Setting },
    value_of("service_password", "bearer", "servicePassword", (8, 400)),
    value_of("service_password", "bearer", "serviceCredentialSecret", (8, 400)),
    // Model providers
    prefix("anthropic_admin_key", "provider", "sk-ant-admin", Token, (80, 120)),
    prefix("anthropic_api_key", "provider", "sk-ant-", Token, (80, 120)),
    prefix("openrouter_api_key", "provider", "sk-or-v1-", Hex, (64, 64)),
    prefix("openai_api_key", "provider", "sk-proj-", Token, (40, 200)),
    prefix("openai_api_key", "provider", "sk-svcacct-", Token, (40, 200)),
    prefix("openai_admin_key", "provider", "sk-admin-", Token, (40, 200)),
    prefix("langfuse_secret_key", "provider", "sk-lf-", Token, (36, 36)),
    prefix("langfuse_public_key", "provider", "pk-lf-", Token, (36, 36)),
    inner("openai_api_key", "T3BlbkFJ", (20, 160), (20, 160)),
    setting("deepseek_api_key", "DEEPSEEK_API_KEY", Token, (35, 35)),
    prefix("huggingface_token", "provider", "hf_", Alphanumeric, (34, 40)),
    prefix("huggingface_organization_token", "provider", "api_org_", Alphanumeric, (34, 34)),
    prefix("google_api_key", "provider", "AIza", Token, (35, 35)),
    prefix("groq_api_key", "provider", "gsk_", Alphanumeric, (52, 52)),
    prefix("xai_api_key", "provider", "xai-", Alphanumeric, (80, 80)),
    prefix("nvidia_api_key", "provider", "nvapi-", Token, (64, 64)),
    prefix("perplexity_api_key", "provider", "pplx-", Alphanumeric, (48, 48)),
    prefix("replicate_api_token", "provider", "r8_", Alphanumeric, (37, 37)),
    prefix("cerebras_api_key", "provider", "csk-", Alphanumeric, (48, 48)),
    prefix("fireworks_api_key", "provider", "fw_", Alphanumeric, (22, 24)),
    prefix("tavily_api_key", "provider", "tvly-", Token, (28, 60)),
    prefix("voyage_api_key", "provider", "pa-", Token, (43, 43)),
    prefix("jina_api_key", "provider", "jina_", Token, (60, 62)),
    setting("cohere_api_key", "COHERE_API_KEY", Alphanumeric, (40, 40)),
    setting("cohere_api_key", "CO_API_KEY", Alphanumeric, (40, 40)),
    setting("mistral_api_key", "MISTRAL_API_KEY", Alphanumeric, (32, 32)),
    setting("together_api_key", "TOGETHER_API_KEY", Token, (64, 80)),
    setting("elevenlabs_api_key", "ELEVENLABS_API_KEY", Token, (32, 51)),
    setting("deepgram_api_key", "DEEPGRAM_API_KEY", Hex, (40, 40)),
    setting("assemblyai_api_key", "ASSEMBLYAI_API_KEY", Hex, (32, 32)),
    setting("azure_openai_api_key", "AZURE_OPENAI_API_KEY", Alphanumeric, (32, 84)),
    // Retrieval, tracing, experiments
    prefix("pinecone_api_key", "provider", "pcsk_", Token, (50, 90)),
    setting("qdrant_api_key", "QDRANT_API_KEY", TokenDot, (30, 200)),
    setting("weaviate_api_key", "WEAVIATE_API_KEY", Token, (30, 60)),
    setting("azure_search_admin_key", "AZURE_SEARCH_ADMIN_KEY", Alphanumeric, (52, 52)),
    setting("wandb_api_key", "WANDB_API_KEY", Hex, (40, 40)),
    prefix("langsmith_api_key", "provider", "lsv2_pt_", Token, (40, 50)),
    prefix("langsmith_api_key", "provider", "lsv2_sk_", Token, (40, 50)),
    // Clouds and platforms
    inner("azure_client_secret", "Q~", (4, 4), (31, 34)),
    prefix("azure_storage_key", "provider", "AccountKey=", Base64, (86, 90)),
    prefix("google_oauth_token", "provider", "ya29.", TokenDot, (40, 1000)),
    prefix("google_client_secret", "provider", "GOCSPX-", Token, (28, 28)),
    prefix("databricks_token", "provider", "dapi", Hex, (32, 34)),
    setting("snowflake_password", "SNOWFLAKE_PASSWORD", TokenDot, (8, 100)),
    prefix("digitalocean_token", "provider", "dop_v1_", Hex, (64, 64)),
    prefix("docker_token", "provider", "dckr_pat_", Token, (27, 40)),
    prefix("vault_token", "provider", "hvs.", Token, (24, 200)),
    inner("terraform_token", ".atlasv1.", (14, 14), (60, 70)),
    prefix("doppler_token", "provider", "dp.pt.", Alphanumeric, (43, 43)),
    prefix("onepassword_token", "provider", "ops_eyJ", TokenDot, (200, 2000)),
    prefix("grafana_token", "provider", "glsa_", Token, (41, 46)),
    prefix("grafana_token", "provider", "glc_", Base64, (32, 400)),
    // Code and collaboration
    prefix("github_token", "provider", "ghp_", Alphanumeric, (36, 36)),
    prefix("github_token", "provider", "gho_", Alphanumeric, (36, 36)),
    prefix("github_token", "provider", "ghu_", Alphanumeric, (36, 36)),
    prefix("github_token", "provider", "ghs_", Alphanumeric, (36, 36)),
    prefix("github_token", "provider", "ghr_", Alphanumeric, (36, 76)),
    prefix("github_token", "provider", "github_pat_", Token, (82, 82)),
    prefix("gitlab_token", "provider", "glpat-", TokenDot, (20, 60)),
    prefix("npm_token", "provider", "npm_", Alphanumeric, (36, 36)),
    prefix("pypi_token", "provider", "pypi-AgEI", Token, (50, 300)),
    prefix("slack_token", "provider", "xoxb-", Token, (24, 90)),
    prefix("slack_token", "provider", "xoxp-", Token, (24, 90)),
    prefix("slack_token", "provider", "xapp-", Token, (24, 120)),
    prefix("notion_token", "provider", "ntn_", Alphanumeric, (40, 50)),
    prefix("linear_api_key", "provider", "lin_api_", Alphanumeric, (40, 40)),
    prefix("stripe_key", "provider", "sk_live_", Alphanumeric, (24, 120)),
    prefix("stripe_key", "provider", "rk_live_", Alphanumeric, (24, 120)),
    prefix("sendgrid_api_key", "provider", "SG.", TokenDot, (60, 70)),
    prefix("shopify_token", "provider", "shpat_", Hex, (32, 32)),
    setting("twilio_auth_token", "TWILIO_AUTH_TOKEN", Hex, (32, 32)),
    // Shapes that belong to nobody
    CredentialKind { name: "private_key", class: "provider", mark: "-----BEGIN ", alphabet: Alphabet::JsonString, length: (64, 20_000), place: Place::Pem },
    CredentialKind {
        name: "kubernetes_secret",
        class: "provider",
        mark: "kind: Secret",
        alphabet: Alphabet::JsonString,
        length: (12, 40_000),
        place: Place::Manifest,
    },
    CredentialKind { name: "jwt", class: "bearer", mark: "eyJ", alphabet: TokenDot, length: (60, 8_000), place: Place::Jwt },
    CredentialKind { name: "password_in_url", class: "provider", mark: "://", alphabet: Alphabet::UrlUser, length: (4, 200), place: Place::UrlPassword },
    CredentialKind { name: "bearer_token", class: "bearer", mark: "Bearer ", alphabet: Alphabet::Bearer, length: (24, 4_000), place: Place::Setting },
    CredentialKind { name: "bearer_token", class: "bearer", mark: "bearer ", alphabet: Alphabet::Bearer, length: (24, 4_000), place: Place::Setting },
    CredentialKind { name: "basic_credentials", class: "bearer", mark: "Basic ", alphabet: Base64, length: (16, 400), place: Place::Setting },
    CredentialKind { name: "basic_credentials", class: "bearer", mark: "basic ", alphabet: Base64, length: (16, 400), place: Place::Setting },
    setting("api_key_header", "x-api-key", TokenDot, (16, 200)),
    setting("api_key_header", "X-Api-Key", TokenDot, (16, 200)),
    CredentialKind {
        name: "aws_session_token",
        class: "session",
        mark: "X-Amz-Security-Token=",
        alphabet: Alphabet::UrlValue,
        length: (16, 4_000),
        place: Place::Setting,
    },
    CredentialKind { name: "signed_url", class: "session", mark: "X-Amz-Signature=", alphabet: Hex, length: (64, 64), place: Place::Setting },
    CredentialKind { name: "signed_url", class: "session", mark: "&sig=", alphabet: Alphabet::UrlValue, length: (30, 200), place: Place::Setting },
];
