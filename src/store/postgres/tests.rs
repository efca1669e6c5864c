use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use super::*;
use crate::provider::secret::Secret;
use crate::store::suite::{self, Fresh};

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../../tests/it/support/postgres.rs"]
mod server;

/// A database of a test's own, straight or through a pooler.
struct Fence {
    settings: Settings,
    straight: PgPool,
}

fn settings(url: &str) -> Settings {
    Settings::new(Secret::new(url)).unwrap()
}

/// A database, unless there is no Postgres here. Starting the server blocks, for as long as the first test needs it.
async fn fresh() -> Option<Fence> {
    if server::is_missing() {
        return None;
    }
    let url = tokio::task::spawn_blocking(|| server::shared().database()).await.unwrap();
    Some(Fence { settings: settings(&url), straight: straight(&url) })
}

fn straight(url: &str) -> PgPool {
    let options = PgConnectOptions::from_str(url).unwrap().options([("search_path", "ringfence")]);
    PgPoolOptions::new().max_connections(2).connect_lazy_with(options)
}

impl Fence {
    async fn store(&self) -> PostgresStore {
        PostgresStore::open(&self.settings, true, |why| panic!("{why}")).await.unwrap()
    }
}

#[async_trait]
impl Fresh for Fence {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.store().await)
    }
    async fn execute(&self, sql: &str) {
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&self.straight).await.unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&self.straight).await.unwrap()
    }
}

suite::behaves_as_a_store!(fresh);
