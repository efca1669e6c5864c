//! The command line, one file per command.
//!
//! Exit codes: 0 success; 1 failure; 2 a mistake in the command line or the config.

mod admin_client;
mod alarms;
mod ask;
mod built;
mod businesses;
mod bypass;
mod calls;
mod check;
mod check_live;
pub mod demo;
mod do_not_call;
mod doctor;
mod environment;
mod events;
mod explain;
mod file;
mod health;
mod init;
mod logs;
mod mend;
mod migrate;
mod modes;
mod outcome;
mod purge;
mod reconcile;
mod refusals;
mod reload;
mod runs;
mod schedules;
mod serve;
mod shell;
mod simulate;
mod smoke;
mod status;
mod support_bundle;
mod text;
mod token;
mod top;
mod watch;
mod webhooks;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use nix::sys::stat::{Mode, umask};
use outcome::Failure;

/// A sidecar that fences the calls of voice products inside the capacity they bought.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a first config from the keys in the environment
    Init(init::Init),
    /// Run the sidecar
    Serve(serve::Serve),
    /// Check the config for mistakes
    Check(check::Check),
    /// Check keys, webhooks, numbers, agents, store and limits live, and suggest fixes. Changes nothing without --fix
    Doctor(doctor::Doctor),
    /// Place one real call through a running sidecar, follow it to its end, and say what works. Dials nothing without --live
    Smoke(smoke::Smoke),
    /// Show the state of a running sidecar on one screen
    Status(status::Status),
    /// Watch the calls of a running sidecar live
    Top(top::Top),
    /// Check whether a running sidecar is up, or ready; the result is the exit code
    Health(health::Health),
    /// Make a running sidecar reload its config, completely or not at all
    Reload(reload::Reload),
    /// Compare leases, call records and providers now, and repair differences
    Reconcile(reconcile::Reconcile),
    /// Migrate the store's schema up or down, or show its version
    Migrate(migrate::Migrate),
    /// Make a token for listen.admin
    Token(token::Token),
    /// Show, hang up or release calls of a running sidecar
    Calls(calls::Calls),
    /// List refused calls, and why they were refused
    Refusals(refusals::Refusals),
    /// Explain why a call was or would be refused: its limits, who holds their slots, what to do
    Explain(explain::Explain),
    /// Show, import and export businesses
    Businesses(businesses::Businesses),
    /// Let everything through for a limited time, counted and recorded
    Bypass(bypass::Bypass),
    /// Create, show, pause, resume, cancel, retry and export bulk runs
    Runs(runs::Runs),
    /// Create, show, pause, resume, fire and delete schedules of recurring runs
    Schedules(schedules::Schedules),
    /// Show and change the do-not-call lists of a running sidecar
    DoNotCall(do_not_call::DoNotCall),
    /// Show webhooks and deliveries, and replay them
    Events(events::Events),
    /// Send a signed test webhook to a running sidecar
    Webhooks(webhooks::Webhooks),
    /// Delete the data of a business: ended calls, records, webhooks, deliveries, refusals
    Purge(purge::Purge),
    /// Write one file for support, without secrets and full telephone numbers
    SupportBundle(support_bundle::SupportBundle),
    /// Simulate ElevenLabs and Twilio on this machine
    Simulate(simulate::Simulate),
    /// Show what ringfence does, against simulated providers, in a few seconds
    Demo(demo::Demo),
    /// Print shell completions
    Completions(shell::Completions),
    /// Print or write man pages
    Man(shell::Man),
}

/// All commands with their options; the reference page is generated from it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the given command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Init(_)) {
        // Files created from here on (database, spool, journal, sockets, logs) are accessible to this user only.
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("ringfence: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Init(command) => command.run().await,
            Command::Serve(command) => command.run().await,
            Command::Check(command) => command.run().await,
            Command::Doctor(command) => command.run().await,
            Command::Smoke(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Top(command) => command.run().await,
            Command::Health(command) => command.run().await,
            Command::Refusals(command) => command.run().await,
            Command::Explain(command) => command.run().await,
            Command::Businesses(command) => command.run().await,
            Command::Bypass(command) => command.run().await,
            Command::Webhooks(command) => command.run().await,
            Command::Completions(completions) => completions.run(command()),
            Command::Man(man) => man.run(command()),
            Command::Reload(command) => command.run().await,
            Command::Reconcile(command) => command.run().await,
            Command::Migrate(command) => command.run().await,
            Command::Token(command) => command.run(),
            Command::Calls(command) => command.run().await,
            Command::Runs(command) => command.run().await,
            Command::Schedules(command) => command.run().await,
            Command::DoNotCall(command) => command.run().await,
            Command::Events(command) => command.run().await,
            Command::Purge(command) => command.run().await,
            Command::SupportBundle(command) => command.run().await,
            Command::Simulate(command) => command.run().await,
            Command::Demo(command) => command.run().await,
        }
    });
    // Running work, such as a look-up at a provider that does not answer, must not delay the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(Failure::Config) => ExitCode::from(2),
        Err(Failure::Failed(error)) => {
            eprintln!("ringfence: {error:#}");
            ExitCode::FAILURE
        }
    }
}
