//! SQL functions that know credentials and networks, the same in detections and at the query door.

pub mod intervals;

use std::net::IpAddr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanBuilder, StringBuilder};
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, create_udf};

use crate::clock::Micros;
use crate::credential;
use crate::secret::Fingerprinter;

/// Name, arguments and meaning of every function here, for help texts and the docs.
pub static FUNCTIONS: &[(&str, &str, &str)] = &[
    ("access_key_account", "access_key_id", "the 12-digit AWS account that an access key id belongs to, decoded from the id; null where the id carries none"),
    ("credential_class", "credential", "long_lived, session, bearer, provider or unknown"),
    ("cidr_contains", "network, address", "whether an address lies in a network such as '10.0.0.0/8'; null if either cannot be read"),
    (
        "listed",
        "list, value",
        "whether a value is on a list as dimensions hold them (a JSON array; `prefix*` and, for addresses, networks count); null where there is no list",
    ),
    ("user_agent_family", "user_agent", "the program behind a user agent, without versions: Boto3, aws-cli, Mozilla, OpenAI/Python, …"),
    ("threshold", "value, name, source", "the value: a number or length that a detection compares with, under its name and with where it comes from"),
    ("run_at", "", "in detections with a schedule: the moment that they are asked about"),
    ("fingerprint", "secret", "the name that this deployment gives a secret, as found in `credential` columns"),
];

/// Functions that give rows, at the query door only: name, arguments and meaning.
pub static TABLE_FUNCTIONS: &[(&str, &str, &str)] = &[
    (
        "credential_timeline",
        "credential",
        "every act of a credential and of what was minted from it (`depth` links further), over all streams: `SELECT * FROM credential_timeline('AKIA…') ORDER BY event_time`",
    ),
    ("lineage_of", "credential", "what a credential was minted from, and what was minted from it: `relation` is ancestor or descendant"),
];

/// Adds the functions, and JSON access into `raw` (`json_get_str(raw, 'userIdentity', 'arn')`, `raw->'requestParameters'->>'modelId'`).
///
/// # Errors
/// Never in practice: a name would have to be taken twice.
pub fn register(registry: &mut dyn FunctionRegistry, fingerprinter: &Fingerprinter) -> Result<()> {
    datafusion_functions_json::register_all(registry)?;
    let fingerprinter = fingerprinter.clone();
    for udf in [
        text_function("access_key_account", credential::account_of),
        text_function("credential_class", |text| Some(credential::class(text).to_owned())),
        text_function("fingerprint", move |secret| Some(credential::name_of(secret, &fingerprinter))),
        text_function("user_agent_family", |agent| Some(user_agent_family(agent).to_owned())),
        pair_function("cidr_contains", in_network),
        pair_function("listed", listed),
    ] {
        registry.register_udf(Arc::new(udf))?;
    }
    registry.register_udf(Arc::new(ScalarUDF::from(Threshold::default())))?;
    Ok(())
}

/// `run_at()`: the moment that a detection with a schedule is asked about.
pub fn run_at(at: Micros) -> ScalarUDF {
    let kind = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let value = ScalarValue::TimestampMicrosecond(Some(at), Some("UTC".into()));
    create_udf("run_at", Vec::new(), kind, Volatility::Immutable, Arc::new(move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(value.clone()))))
}

/// Name of [`Threshold`] in SQL.
pub const THRESHOLD: &str = "threshold";

/// Gives its first argument. The planner folds it away; the name and the source beside the value are for people, and for
/// `keyfuse docs detections`, which lists them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Threshold {
    signature: Signature,
}

impl Default for Threshold {
    fn default() -> Self {
        Self { signature: Signature::any(3, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Threshold {
    fn name(&self) -> &str {
        THRESHOLD
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(call.args[0].clone())
    }
}

fn text_function(name: &str, f: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> ScalarUDF {
    let body = move |args: &[ColumnarValue]| {
        let args = ColumnarValue::values_to_arrays(args)?;
        let input = args[0].as_string::<i32>();
        let mut out = StringBuilder::new();
        for value in input {
            out.append_option(value.and_then(&f));
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish()) as ArrayRef))
    };
    create_udf(name, vec![DataType::Utf8], DataType::Utf8, Volatility::Immutable, Arc::new(body))
}

fn pair_function(name: &'static str, f: impl Fn(&str, &str) -> Option<bool> + Send + Sync + 'static) -> ScalarUDF {
    let body = move |args: &[ColumnarValue]| {
        let args = ColumnarValue::values_to_arrays(args)?;
        let (left, right) = (args[0].as_string::<i32>(), args[1].as_string::<i32>());
        if left.len() != right.len() {
            return Err(DataFusionError::Internal(format!("{name}: arguments of different lengths")));
        }
        let mut out = BooleanBuilder::with_capacity(left.len());
        for (left, right) in left.iter().zip(right) {
            out.append_option(left.zip(right).and_then(|(left, right)| f(left, right)));
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish()) as ArrayRef))
    };
    create_udf(name, vec![DataType::Utf8, DataType::Utf8], DataType::Boolean, Volatility::Immutable, Arc::new(body))
}

/// Whether a value is on a list, as dimensions hold them.
fn listed(list: &str, value: &str) -> Option<bool> {
    let list: Vec<String> = serde_json::from_str(list).ok()?;
    Some(list.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) => value.starts_with(prefix),
        None => entry == value || (entry.contains('/') && in_network(entry, value) == Some(true)),
    }))
}

/// The first product of a user agent without its version; AWS command lines and SDKs are told apart.
fn user_agent_family(agent: &str) -> &str {
    let agent = agent.trim_matches(['[', ']']);
    let product = agent.split_whitespace().next().unwrap_or_default();
    product.rsplit_once('/').filter(|(_, version)| version.starts_with(|c: char| c.is_ascii_digit())).map_or(product, |(name, _)| name)
}

/// Whether the address lies in the network; a bare address is a network of one.
pub fn in_network(network: &str, address: &str) -> Option<bool> {
    let address: IpAddr = address.parse().ok()?;
    match network.parse::<ipnet::IpNet>() {
        Ok(network) => Some(network.contains(&address)),
        Err(_) => Some(network.parse::<IpAddr>().ok()? == address),
    }
}
