//! Scripts that run in the server, each one atomic step.

/// A script. Its number is its index in [`SOURCES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Probe,
    Admit,
    Adopt,
    Release,
    Leases,
    Counts,
    Before,
    Publish,
}

/// The number of scripts.
pub(super) const SCRIPTS: usize = 8;

macro_rules! guarded {
    ($file:literal) => {
        concat!(include_str!("scripts/guard.lua"), "\n", include_str!(concat!("scripts/", $file)))
    };
}

/// Sources of the scripts, in the order of [`Script`].
pub(super) const SOURCES: [&str; SCRIPTS] = [
    include_str!("scripts/probe.lua"),
    guarded!("admit.lua"),
    guarded!("adopt.lua"),
    guarded!("release.lua"),
    guarded!("held.lua"),
    guarded!("counts.lua"),
    guarded!("before.lua"),
    guarded!("publish.lua"),
];

impl Script {
    pub(super) fn source(self) -> &'static str {
        SOURCES[self as usize]
    }
}
