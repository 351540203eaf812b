//! Reading TOML with errors that say what is wrong, where, and what was probably meant.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Visitor};

/// What is wrong with a manifest or a VM's file, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Shorthand for an [`Error`] from format arguments.
#[macro_export]
macro_rules! wrong {
    ($($arg:tt)*) => { $crate::Error(format!($($arg)*)) };
}

/// The value in `text`, which is the content of `path`.
///
/// # Errors
/// [`Error`] with file, line and column; an unknown key comes with the nearest known one.
pub fn toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        wrong!("{}:{line}:{column}: {}", path.display(), explain(error.message()))
    })
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

/// serde says which names it knows; this finds the one that was probably meant.
fn explain(message: &str) -> String {
    let message = message.trim();
    let (what, rest) = match (message.strip_prefix("unknown field "), message.strip_prefix("unknown variant ")) {
        (Some(rest), _) => ("key", rest),
        (_, Some(rest)) => ("value", rest),
        _ => return message.to_owned(),
    };
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    format!("unknown {what} \"{unknown}\"{}", suggestion(unknown, &known))
}

/// "; did you mean …? Known: …", for an unknown name.
pub fn suggestion(unknown: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min();
    let meant = nearest.map(|(_, name)| format!("; did you mean \"{name}\"?")).unwrap_or_default();
    let separator = if meant.is_empty() { "; known here: " } else { " Known here: " };
    if known.is_empty() { meant } else { format!("{meant}{separator}{}", known.join(", ")) }
}

/// A size in bytes, written as a number with K, M or G (powers of 1024), or as plain bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl std::str::FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let trimmed = text.trim().trim_end_matches("iB").trim_end_matches('B');
        let (digits, shift) = match trimmed.chars().last().map(|last| last.to_ascii_uppercase()) {
            Some('K') => (&trimmed[..trimmed.len() - 1], 10),
            Some('M') => (&trimmed[..trimmed.len() - 1], 20),
            Some('G') => (&trimmed[..trimmed.len() - 1], 30),
            _ => (trimmed, 0),
        };
        let number: Option<u64> = digits.trim().parse().ok();
        number
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| wrong!("\"{text}\" is no size: write a whole number with K, M or G, such as 512M"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => write!(f, "0"),
            n if n % (1 << 30) == 0 => write!(f, "{}G", n >> 30),
            n if n % (1 << 20) == 0 => write!(f, "{}M", n >> 20),
            n if n % (1 << 10) == 0 => write!(f, "{}K", n >> 10),
            n => write!(f, "{n} bytes"),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(|Error(message)| E::custom(message))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size can't be negative"))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Sample {
        #[allow(dead_code)]
        memory: Size,
        #[allow(dead_code)]
        on_reset: Option<String>,
    }

    fn error(text: &str) -> String {
        toml::<Sample>(Path::new("x.toml"), text).unwrap_err().0
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_known_one() {
        assert_eq!(
            error("# c\nmemry = \"1M\"\n"),
            "x.toml:2:1: unknown key \"memry\"; did you mean \"memory\"? Known here: memory, on-reset"
        );
        assert!(error("zzz = 1\n").contains("unknown key \"zzz\"; known here: memory, on-reset"));
    }

    #[test]
    fn a_wrong_size_says_how_to_write_one() {
        assert!(error("memory = \"12X\"").contains("x.toml:1:10: \"12X\" is no size"));
        assert!(error("memory = -1").contains("negative"));
        assert!(error("memory = \"99999999999G\"").contains("no size"));
    }

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [("512M", 512 << 20), ("1G", 1 << 30), ("64k", 65536), ("4096", 4096), ("2MiB", 2 << 20)] {
            assert_eq!(text.parse::<Size>().unwrap().0, bytes);
        }
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        assert!(error("memory = \"1M\"\non-reset = [").starts_with("x.toml:2:"));
    }
}
