//! Any HTTP address: the alert's document, or a text of one's own made from it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::http::Http;
use super::{Failure, Format, Message, Sink};
use crate::clock;
use crate::error::{At, Error, Result};

#[derive(Clone, Debug, Default)]
pub struct WebhookSettings {
    pub url: String,
    pub format: Format,
    /// File with the key that each body is signed with.
    pub secret: Option<PathBuf>,
    /// File with a minijinja template of the body; what it knows is the document, as `alert`.
    pub template: Option<PathBuf>,
    pub headers: BTreeMap<String, String>,
}

pub struct Webhook {
    http: Http,
    settings: WebhookSettings,
    secret: Option<Vec<u8>>,
    template: Option<minijinja::Environment<'static>>,
}

const TEMPLATE: &str = "webhook";

impl Webhook {
    /// # Errors
    /// An address that is none, a file that cannot be read, a template that is wrong.
    pub fn new(settings: &WebhookSettings) -> Result<Self> {
        let http = Http::new(&settings.url)?;
        let read = |path: &PathBuf| std::fs::read_to_string(path).user_at(|| format!("webhook {}: {}", http.shown, path.display()));
        let secret = settings.secret.as_ref().map(read).transpose()?.map(|text| text.trim_end().as_bytes().to_vec());
        let template = match &settings.template {
            Some(path) => {
                let mut environment = minijinja::Environment::new();
                environment.set_auto_escape_callback(|_| minijinja::AutoEscape::Json);
                environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
                environment.add_template_owned(TEMPLATE, read(path)?).user_at(|| format!("template {}", path.display()))?;
                Some(environment)
            }
            None => None,
        };
        Ok(Self { http, settings: settings.clone(), secret, template })
    }

    fn body(&self, document: &serde_json::Value) -> std::result::Result<String, Failure> {
        let Some(environment) = &self.template else { return Ok(document.to_string()) };
        let made = environment.get_template(TEMPLATE).and_then(|template| template.render(minijinja::context! { alert => document }));
        made.map_err(|error| Failure { error: Error::user("the webhook's template").because(error), for_good: true })
    }
}

impl Sink for Webhook {
    fn deliver(&mut self, message: &Message<'_>) -> std::result::Result<(), Failure> {
        for parcel in message.parcels {
            let body = self.body(&self.settings.format.write(parcel))?;
            let mut headers: Vec<(&str, String)> = self.settings.headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
            headers.push(("idempotency-key", format!("{}:{}", parcel.alert.alert_id, parcel.alert.revision)));
            if let Some(secret) = &self.secret {
                headers.push(("x-keyfuse-signature", signature(secret, clock::now() / 1_000_000, &body)));
            }
            self.http.post("", &headers, body)?;
        }
        Ok(())
    }
}

/// `t=SECONDS,v1=HEX`: HMAC-SHA256 over `SECONDS.BODY`, so that an old body cannot be sent again as new.
pub fn signature(secret: &[u8], seconds: i64, body: &str) -> String {
    let mut mac = match Hmac::<Sha256>::new_from_slice(secret) {
        Ok(mac) => mac,
        Err(_) => return String::new(),
    };
    mac.update(format!("{seconds}.{body}").as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}
