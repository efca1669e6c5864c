//! Enums whose variants have names: in config, the database, metrics and answers.

/// A text that is not one of the known words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown word {0:?}")]
pub struct UnknownWord(pub String);

/// An enum that `words!` defines.
pub trait NamedEnum: Copy + 'static {
    /// All values, in order.
    const ALL: &'static [Self];
    /// The name.
    fn name(self) -> &'static str;
}

/// Defines an enum whose variants have names in config, the database, metrics and answers.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// All values, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The name in config, the database, metrics and answers.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl $crate::words::NamedEnum for $name {
            const ALL: &'static [Self] = Self::ALL;
            fn name(self) -> &'static str {
                self.as_str()
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl std::str::FromStr for $name {
            type Err = $crate::words::UnknownWord;
            fn from_str(word: &str) -> std::result::Result<Self, $crate::words::UnknownWord> {
                match word { $($word => Ok(Self::$variant),)+ _ => Err($crate::words::UnknownWord(word.to_owned())) }
            }
        }
    };
}
pub(crate) use words;
