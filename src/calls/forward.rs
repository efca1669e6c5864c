//! Which paths pass to the app although no description knows them.

use crate::provider::path::{normal, readings};

/// Paths of the app's own: all, or those that the operator named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardPaths(Option<Vec<Forward>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Forward {
    path: String,
    /// And all below it.
    below: bool,
}

impl ForwardPaths {
    /// Reads paths as `/media` (that one) and `/media/*` (that one and those below it).
    ///
    /// # Errors
    /// The first that is none.
    pub fn parse<S: AsRef<str>>(paths: &[S]) -> Result<Self, String> {
        let parse = |text: &str| {
            let (path, below) = text.strip_suffix("/*").map_or((text, false), |path| (path, true));
            let is_path = text.starts_with('/') && !path.contains(['*', '?', '#']) && readings(path).len() == 1;
            is_path
                .then(|| Forward { path: normal(path), below })
                .ok_or_else(|| format!("{text:?} is no path such as /media or /media/*"))
        };
        paths.iter().map(|text| parse(text.as_ref())).collect::<Result<_, _>>().map(Some).map(Self)
    }

    /// Whether every path passes that no description knows.
    pub fn are_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether a path passes: however it is read, it is one of those.
    pub fn contain(&self, path: &str) -> bool {
        let Some(allowed) = &self.0 else { return true };
        readings(path).iter().all(|reading| {
            allowed.iter().any(|one| {
                let prefix = one.path.trim_end_matches('/');
                *reading == one.path
                    || (one.below && reading.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_paths_pass_however_they_are_written() {
        let paths = ForwardPaths::parse(&["/media", "/twiml/*"]).unwrap();
        for passes in ["/media", "/media/", "//media", "/twiml", "/twiml/a/b", "/twiml/%61", "/x/../media"] {
            assert!(paths.contain(passes), "{passes}");
        }
        for stays in [
            "/",
            "/Media",
            "/media/x",
            "/twimlx",
            "/twiml/../admin",
            "/twiml/%2e%2e/admin",
            "/twiml/..%2fadmin",
            "/twiml/%252e%252e/admin",
            "/twiml\\..\\..\\admin",
            "/admin",
        ] {
            assert!(!paths.contain(stays), "{stays}");
        }
        assert!(ForwardPaths::default().contain("/anything") && ForwardPaths::default().are_all());
        assert!(!ForwardPaths::parse::<&str>(&[]).unwrap().contain("/"), "none at all");
        assert!(ForwardPaths::parse(&["/*"]).unwrap().contain("/a/b"));
        for bad in ["media", "", "/a*", "/a?b", "/a%2fb"] {
            assert!(ForwardPaths::parse(&[bad]).is_err(), "{bad}");
        }
    }
}
