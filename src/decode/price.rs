//! What a model call costs by list price, so that an alert can speak of money. An estimate: discounts, regions and batch
//! rates are not known here.

/// Part of a model id, and its list price per million tokens in and out, in millionths of a dollar. Providers' price pages, November 2026
/// or the last price seen; the first match counts.
const PRICES: &[(&str, i64, i64)] = &[
    ("claude-opus-4-5", 5_000_000, 25_000_000),
    ("claude-opus", 15_000_000, 75_000_000),
    ("claude-3-opus", 15_000_000, 75_000_000),
    ("claude-haiku-4", 1_000_000, 5_000_000),
    ("claude-3-5-haiku", 800_000, 4_000_000),
    ("claude-3-haiku", 250_000, 1_250_000),
    ("claude-instant", 800_000, 2_400_000),
    ("claude-v2", 8_000_000, 24_000_000),
    ("claude", 3_000_000, 15_000_000),
    ("nova-micro", 35_000, 140_000),
    ("nova-lite", 60_000, 240_000),
    ("nova-premier", 2_500_000, 12_500_000),
    ("nova-pro", 800_000, 3_200_000),
    ("titan-embed", 20_000, 0),
    ("llama4-maverick", 240_000, 970_000),
    ("llama", 720_000, 720_000),
    ("mistral-large", 2_000_000, 6_000_000),
    ("mistral", 200_000, 600_000),
    ("deepseek", 1_350_000, 5_400_000),
    ("gpt-4o-mini", 150_000, 600_000),
    ("gpt-4o", 2_500_000, 10_000_000),
    ("gpt-4.1-mini", 400_000, 1_600_000),
    ("gpt-4.1", 2_000_000, 8_000_000),
    ("gpt-5-mini", 250_000, 2_000_000),
    ("gpt-5", 1_250_000, 10_000_000),
    ("o3", 2_000_000, 8_000_000),
    ("gemini-2.5-flash", 300_000, 2_500_000),
    ("gemini", 1_250_000, 10_000_000),
    ("text-embedding-3", 20_000, 0),
];

/// Millionths of a dollar for so many tokens; `None` for a model without a price. Tokens read from a cache cost a tenth
/// of fresh ones, written ones a quarter more.
pub fn micro_dollars(model: &str, input: i64, output: i64, cache_read: i64, cache_write: i64) -> Option<i64> {
    let model = model.to_ascii_lowercase();
    let (_, price_in, price_out) = PRICES.iter().find(|(part, ..)| model.contains(part))?;
    let inputs = i128::from(input) * 100 + i128::from(cache_read) * 10 + i128::from(cache_write) * 125;
    let cost = (inputs * i128::from(*price_in) / 100 + i128::from(output) * i128::from(*price_out)) / 1_000_000;
    i64::try_from(cost).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_tokens_cost_their_list_price() {
        assert_eq!(micro_dollars("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 1_000_000, 1_000_000, 0, 0), Some(18_000_000));
        assert_eq!(micro_dollars("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 0, 0, 1_000_000, 0), Some(300_000));
        assert_eq!(micro_dollars("unheard-of-model", 1, 1, 0, 0), None);
    }
}
