//! Detects a database file on an ephemeral disk, which platforms replace at every deploy.

use std::path::Path;

use super::store::StoreSettings;
use super::table::Table;

/// Variables that identify platforms whose machines have no persistent disk unless a volume is mounted.
const PLATFORMS: [(&str, &str); 6] = [
    ("FLY_APP_NAME", "Fly"),
    ("RAILWAY_ENVIRONMENT_ID", "Railway"),
    ("RENDER", "Render"),
    ("DYNO", "Heroku"),
    ("K_SERVICE", "Cloud Run"),
    ("KUBERNETES_SERVICE_HOST", "Kubernetes"),
];

/// Warns if the database would be lost with the machine.
pub(super) fn warn(root: &Table<'_>, store: &StoreSettings) {
    if store.postgres.is_some() {
        return;
    }
    let Some((_, platform)) = PLATFORMS.iter().find(|(name, _)| root.read_variable(name).is_some()) else { return };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let folder = store.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let Ok(folder) = folder.canonicalize() else { return };
    if is_lost(&mounts, &folder) {
        let title = format!(
            "the database {} is on the ephemeral disk of this machine ({platform}): a deploy loses all open calls, and limits are exceeded",
            store.path.display()
        );
        let help = "set store.url to a Postgres server, or put store.path on a volume";
        root.report().warning("W025", root.table("store").span("path"), title, help);
    }
}

/// Whether a folder is on the machine's own disk or in memory: `mounts`, in the format of `/proc/self/mountinfo`, has no volume above it.
fn is_lost(mounts: &str, folder: &Path) -> bool {
    let mounted = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let at = before.split(' ').nth(4)?.replace("\\040", " ");
        folder.starts_with(&at).then(|| (at, after.split(' ').next().unwrap_or_default().to_owned()))
    });
    // A later mount hides an earlier one at the same place.
    let nearest = mounted.max_by_key(|(at, _)| at.len());
    nearest.is_some_and(|(at, kind)| at == "/" || ["overlay", "tmpfs", "ramfs"].contains(&kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_no_volume_is_lost() {
        let mounts = "22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/a\n\
             23 22 0:21 / /proc rw - proc proc rw\n\
             24 22 254:1 / /data rw,relatime shared:1 - ext4 /dev/vdb rw\n\
             25 24 0:30 / /data/fast rw - tmpfs tmpfs rw\n\
             26 22 254:2 / /my\\040disk rw - ext4 /dev/vdc rw\n";
        for (folder, lost) in [
            ("/app", true),
            ("/data", false),
            ("/data/x", false),
            ("/data/fast/x", true),
            ("/my disk", false),
            ("/datax", true),
        ] {
            assert_eq!(is_lost(mounts, Path::new(folder)), lost, "{folder}");
        }
        // A machine whose own disk is a real one.
        assert!(is_lost("22 1 254:0 / / rw - ext4 /dev/vda rw\n", Path::new("/app")));
        assert!(!is_lost("", Path::new("/app")), "nothing is known");
    }
}
