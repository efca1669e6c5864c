//! `ringfence init`: writes a first config from the environment, without questions.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::outcome::{CONFIG, ConfigFile, Outcome};
use super::{environment, file};

#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    file: ConfigFile,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
}

const HEAD: &str = "# Written by `ringfence init`. Every other key has a default: ringfence check --defaults
mode = \"observe\"   # counts and shows, rejects nothing; then \"enforce\"
";

/// Without it, an account without `concurrent` would have an implicit limit.
const CONCURRENT: &str = "concurrent = 5     # concurrent calls in total: what you want to pay for
";

const TAIL: &str = "
# Who your customers are: a request names one by the header X-Business-Id, or by /b/ID/ before the mount in its URL. Each is
# counted separately, listed here or not; a request that names none belongs to the business \"default\".
[plans]
default = {}         # per-business limits: { concurrent = 2 } is two concurrent calls each

[businesses]
unknown = \"default\"  # unlisted businesses are accepted on this plan; \"reject\" answers them 403
";

impl Init {
    pub(super) async fn run(self) -> Outcome {
        let accounts = environment::accounts(environment::PlanConcurrency::Stated).or_elevenlabs();
        let is_stated = accounts.toml.contains("\nconcurrent");
        let text = format!("{HEAD}{}{}{TAIL}", if is_stated { "" } else { CONCURRENT }, accounts.toml);
        write(&self.file.config, &text, self.force)?;

        println!("wrote {} in observe mode: it counts and shows, and rejects nothing", self.file.config.display());
        for line in &accounts.lines {
            println!("  {line}");
        }
        // Read again as every command will read it: a variable may override what was written.
        let read = file::read(&self.file.config, &[])?;
        if read.loaded.has_errors() && accounts.unset.is_none() {
            read.print("was written, but cannot be used as the environment is now");
            return Ok(ExitCode::from(2));
        }
        let program = std::env::args().next().unwrap_or_else(|| "ringfence".to_owned());
        let config = match self.file.config.as_path() {
            path if path == Path::new(CONFIG) => String::new(),
            path => format!(" --config {}", path.display()),
        };
        println!("\nNext:");
        let mut steps = Vec::new();
        if let Some(name) = accounts.unset {
            steps.push((format!("export {name}=…"), "your key: read from there, stored in no file".to_owned()));
        }
        steps.push((
            format!("{program} check --live{config}"),
            "asks the providers whether keys, webhooks and numbers fit".to_owned(),
        ));
        let mounts: Vec<&str> = accounts.providers.clone();
        let api = read.loaded.config.as_ref().map_or("127.0.0.1:8080".to_owned(), |c| c.listen.api.to_string());
        steps.push((
            format!("{program} serve{config}"),
            format!("then the SDK's base URL: http://{api}/{}", mounts.join(" or /")),
        ));
        if accounts.unset.is_none() {
            steps.push((
                format!("{program} calls list"),
                "after a first call; once it shows what you expect: mode = \"enforce\"".to_owned(),
            ));
        }
        let width = steps.iter().map(|(command, _)| command.chars().count()).max().unwrap_or_default();
        for (n, (command, about)) in steps.iter().enumerate() {
            println!("  {}  {command:<width$}   {about}", n + 1);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn write(path: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    // The file belongs to the operator alone.
    options.write(true).mode(0o600);
    // If two run at once, one creates the file and the other fails.
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            anyhow::bail!("{} exists already: --force overwrites it, --config FILE writes another", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
    };
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}
