//! Posting to an HTTP address, for all sinks that do.

use std::time::Duration;

use reqwest::StatusCode;

use super::Failure;
use crate::error::{At, Error, Result};

/// Longest time for one attempt.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a refusal is told.
const TOLD: usize = 200;

fn parsed(url: &str) -> Result<reqwest::Url> {
    let parsed: reqwest::Url = url.parse().user_at(|| "the address of a sink".into())?;
    match (parsed.scheme(), parsed.host_str()) {
        ("http" | "https", Some(_)) => Ok(parsed),
        _ => Err(Error::user("the address of a sink must begin with http:// or https:// and name a host")),
    }
}

/// Host and port: what of an address may be shown.
///
/// # Errors
/// An address that is none.
pub fn host(url: &str) -> Result<String> {
    let url = parsed(url)?;
    Ok(format!("{}{}", url.host_str().unwrap_or_default(), url.port().map_or_else(String::new, |port| format!(":{port}"))))
}

pub struct Http {
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    url: reqwest::Url,
    /// The address without what may be a secret in it.
    pub shown: String,
}

impl Http {
    /// A client for one address.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new(url: &str) -> Result<Self> {
        let (url, shown) = (parsed(url)?, host(url)?);
        let client =
            reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).user_agent(concat!("keyfuse/", env!("CARGO_PKG_VERSION")));
        let client = client.build().at(|| format!("an HTTP client for {shown}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at(|| "a runtime for a sink".into())?;
        Ok(Self { client, runtime, url, shown })
    }

    /// Posts; anything but 2xx is a failure, and one that would be the same again is so for good.
    ///
    /// # Errors
    /// Status and the beginning of what was answered, or why there was no answer.
    pub fn post(&self, path: &str, headers: &[(&str, String)], body: String) -> std::result::Result<(), Failure> {
        let mut url = self.url.clone();
        if !path.is_empty() {
            url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        }
        let mut request = self.client.post(url).header("content-type", "application/json").body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let (status, text) = self.runtime.block_on(async {
            let mut answer = request.send().await.map_err(|error| Error::environment(format!("posting to {}", self.shown)).because(error.without_url()))?;
            let mut text = Vec::new();
            // No more is read than is told: an endless answer must not hold the sink.
            while text.len() < TOLD {
                match answer.chunk().await {
                    Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                    _ => break,
                }
            }
            Ok::<_, Error>((answer.status(), String::from_utf8_lossy(&text).chars().take(TOLD).collect::<String>()))
        })?;
        if status.is_success() {
            return Ok(());
        }
        // What keyfuse sends is wrong, or not wanted there; a missing right may be given, a busy server recovers.
        let passing = [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
            StatusCode::CONFLICT,
        ];
        let for_good = status.is_client_error() && !passing.contains(&status);
        Err(Failure { error: Error::environment(format!("{} answered {status}: {}", self.shown, text.trim())), for_good })
    }
}
