//! Recurring runs.

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::Result;
use super::super::driver::{Backend, Driver, Sql, binds, damaged};
use super::super::row::Row;
use super::super::schedules::{CreateScheduleOutcome, Schedule, Schedules};
use crate::clock::UnixMs;

fn schedule(row: &Row) -> Sql<Schedule> {
    Ok(Schedule {
        id: row.text("id")?,
        business: row.text("business")?,
        name: row.text("name")?,
        spec: row.text("spec")?,
        state: row.word("state")?,
        done_at: row.number("done_at")?,
        next_at: row.optional_number("next_at")?,
        failing_at: row.optional_number("failing_at")?,
        tries: row.count("tries")?,
        error: row.optional_text("error")?,
        fired_at: row.optional_number("fired_at")?,
        run: row.optional_text("run_id")?,
        note: row.optional_text("note")?,
        created_at: row.number("created_at")?,
        updated_at: row.number("updated_at")?,
        version: row.number("version")?,
    })
}

async fn create(c: &mut dyn Driver, new: &Schedule) -> Sql<CreateScheduleOutcome> {
    let sql = "INSERT INTO schedules (id, business, name, spec, state, done_at, next_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) ON CONFLICT DO NOTHING";
    let binds = binds![
        &new.id,
        &new.business,
        &new.name,
        &new.spec,
        new.state.as_str(),
        new.done_at,
        new.next_at,
        new.created_at,
    ];
    if c.execute(sql, &binds).await? == 1 {
        return Ok(CreateScheduleOutcome::New);
    }
    let sql = "SELECT * FROM schedules WHERE business = $1 AND name = $2";
    let known = c.fetch(sql, &binds![&new.business, &new.name]).await?;
    let known = known.first().ok_or_else(|| damaged("a schedule of this id is there, with another name"))?;
    Ok(CreateScheduleOutcome::Known(Box::new(schedule(known)?)))
}

#[async_trait]
impl<B: Backend> Schedules for B {
    async fn create_schedule(&self, schedule: &Schedule) -> Result<CreateScheduleOutcome> {
        self.write(schedule.clone(), |c, schedule| create(c, schedule).boxed()).await
    }

    async fn schedule(&self, id: &str) -> Result<Option<Schedule>> {
        let found = self.select("SELECT * FROM schedules WHERE id = $1", binds![id.to_owned()].into(), schedule).await;
        found.map(|mut found| found.pop())
    }

    async fn schedules(&self, businesses: Option<Vec<String>>, limit: u32) -> Result<Vec<Schedule>> {
        let sql = "SELECT * FROM schedules WHERE ($2 OR business = ANY($3)) ORDER BY business, name LIMIT $1";
        let all = businesses.is_none();
        self.select(sql, binds![limit, all, businesses.unwrap_or_default()].into(), schedule).await
    }

    async fn due_schedules(&self, now_ms: UnixMs, limit: u32) -> Result<Vec<Schedule>> {
        let sql = "SELECT * FROM schedules WHERE state = 'active' AND next_at <= $1 ORDER BY next_at, id LIMIT $2";
        self.select(sql, binds![now_ms, limit].into(), schedule).await
    }

    async fn failing_schedules(&self) -> Result<u64> {
        let sql = "SELECT count(*) AS n FROM schedules WHERE state = 'active' AND failing_at IS NOT NULL";
        let found = self.select(sql, vec![], |row| row.number("n")).await?;
        Ok(found.first().map_or(0, |n| n.unsigned_abs()))
    }

    async fn change_schedule(&self, to: &Schedule) -> Result<bool> {
        let sql = "UPDATE schedules SET state = $3, done_at = $4, next_at = $5, failing_at = $6, tries = $7, error = $8, fired_at = $9,
                 run_id = $10, note = $11, updated_at = $12, version = version + 1
             WHERE id = $1 AND version = $2";
        let binds = binds![
            to.id.clone(),
            to.version,
            to.state.as_str(),
            to.done_at,
            to.next_at,
            to.failing_at,
            to.tries,
            to.error.clone(),
            to.fired_at,
            to.run.clone(),
            to.note.clone(),
            to.updated_at,
        ];
        Ok(self.run(sql, binds.into()).await? == 1)
    }

    async fn delete_schedule(&self, id: &str) -> Result<bool> {
        Ok(self.run("DELETE FROM schedules WHERE id = $1", binds![id.to_owned()].into()).await? == 1)
    }
}
