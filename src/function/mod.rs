//! SQL functions that know credentials and networks, the same in detections and at the query door.

use std::net::IpAddr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanBuilder, StringBuilder};
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

use crate::credential;
use crate::secret::Fingerprinter;

/// Name, arguments and meaning of every function here, for help texts and the docs.
pub static FUNCTIONS: &[(&str, &str, &str)] = &[
    ("access_key_account", "access_key_id", "the 12-digit AWS account that an access key id belongs to, decoded from the id; null where the id carries none"),
    ("credential_class", "credential", "long_lived, session, bearer, provider or unknown"),
    ("cidr_contains", "network, address", "whether an address lies in a network such as '10.0.0.0/8'; null if either cannot be read"),
    ("fingerprint", "secret", "the name that this deployment gives a secret, as found in `credential` columns"),
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
        cidr_contains(),
    ] {
        registry.register_udf(Arc::new(udf))?;
    }
    Ok(())
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

fn cidr_contains() -> ScalarUDF {
    let body = |args: &[ColumnarValue]| {
        let args = ColumnarValue::values_to_arrays(args)?;
        let (networks, addresses) = (args[0].as_string::<i32>(), args[1].as_string::<i32>());
        if networks.len() != addresses.len() {
            return Err(DataFusionError::Internal("cidr_contains: arguments of different lengths".into()));
        }
        let mut out = BooleanBuilder::with_capacity(networks.len());
        for (network, address) in networks.iter().zip(addresses) {
            out.append_option(network.zip(address).and_then(|(network, address)| in_network(network, address)));
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish()) as ArrayRef))
    };
    create_udf("cidr_contains", vec![DataType::Utf8, DataType::Utf8], DataType::Boolean, Volatility::Immutable, Arc::new(body))
}

/// Whether the address lies in the network; a bare address is a network of one.
pub fn in_network(network: &str, address: &str) -> Option<bool> {
    let address: IpAddr = address.parse().ok()?;
    match network.parse::<ipnet::IpNet>() {
        Ok(network) => Some(network.contains(&address)),
        Err(_) => Some(network.parse::<IpAddr>().ok()? == address),
    }
}
