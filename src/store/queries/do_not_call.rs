//! Do-not-call lists.

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::Result;
use super::super::do_not_call::{DoNotCallLists, ListChange, ListChanges, ListedNumber};
use super::super::driver::{Backend, Driver, Sql, binds, damaged};
use super::super::row::Row;
use super::first;
use crate::clock::UnixMs;

/// Reserves numbers of changes; returns the one before the first. Serialises changes of lists.
async fn count_changes(c: &mut dyn Driver, changes: usize) -> Sql<i64> {
    let changes = i64::try_from(changes).map_err(damaged)?;
    let count = "UPDATE do_not_call_changes SET last = last + $1 WHERE pool = 'default'";
    c.execute(count, &binds![changes]).await?;
    Ok(last_change(c).await? - changes)
}

async fn last_change(c: &mut dyn Driver) -> Sql<i64> {
    let last = "SELECT last FROM do_not_call_changes WHERE pool = 'default'";
    first(c.fetch(last, &[]).await?)?.number("last")
}

/// List, numbers and reason of an addition.
type Putting = (String, Vec<u64>, Option<String>);

async fn put(c: &mut dyn Driver, (list, numbers, reason): &Putting, at_ms: UnixMs) -> Sql<u64> {
    let sql = "INSERT INTO do_not_call (list, number, change, listed, reason, changed_at) VALUES {rows}
         ON CONFLICT (list, number) DO UPDATE SET change = excluded.change, listed = excluded.listed,
             reason = excluded.reason, changed_at = excluded.changed_at WHERE NOT do_not_call.listed";
    let mut change = count_changes(c, numbers.len()).await?;
    let mut rows = Vec::with_capacity(numbers.len());
    for number in numbers {
        change += 1;
        rows.push(Vec::from(binds![list, key(*number)?, change, true, reason, at_ms]));
    }
    c.execute_all(sql, rows).await
}

async fn delete(c: &mut dyn Driver, (list, numbers): &(String, Vec<u64>), at_ms: UnixMs) -> Sql<u64> {
    let sql = "UPDATE do_not_call SET change = $3, listed = false, reason = NULL, changed_at = $4
         WHERE list = $1 AND number = $2 AND listed";
    let mut change = count_changes(c, numbers.len()).await?;
    let mut gone = 0;
    for number in numbers {
        change += 1;
        gone += c.execute(sql, &binds![list, key(*number)?, change, at_ms]).await?;
    }
    Ok(gone)
}

async fn changes(c: &mut dyn Driver, after_change: i64, limit: u32) -> Sql<ListChanges> {
    let until = last_change(c).await?;
    let sql = "SELECT list, number, change, listed FROM do_not_call WHERE change > $1 AND change <= $3 ORDER BY change LIMIT $2";
    let rows = c.fetch(sql, &binds![after_change, limit, until]).await?;
    let more = rows.len() == usize::try_from(limit).map_err(damaged)?;
    let until = if more { rows.last().map_or(Ok(until), |row| row.number("change"))? } else { until };
    let change =
        |row: &Row| Ok(ListChange { list: row.text("list")?, number: number(row)?, listed: row.flag("listed")? });
    Ok(ListChanges { changes: rows.iter().map(change).collect::<Sql<_>>()?, until, more })
}

fn key(number: u64) -> Sql<i64> {
    i64::try_from(number).map_err(damaged)
}

fn number(row: &Row) -> Sql<u64> {
    u64::try_from(row.number("number")?).map_err(damaged)
}

fn listed(row: &Row) -> Sql<ListedNumber> {
    Ok(ListedNumber {
        number: number(row)?,
        reason: row.optional_text("reason")?,
        at: row.number("changed_at")?,
        change: row.number("change")?,
    })
}

#[async_trait]
impl<B: Backend> DoNotCallLists for B {
    async fn put_do_not_call(
        &self,
        list: &str,
        numbers: Vec<u64>,
        reason: Option<String>,
        at_ms: UnixMs,
    ) -> Result<u64> {
        self.write((list.to_owned(), numbers, reason), move |c, putting| put(c, putting, at_ms).boxed()).await
    }

    async fn delete_do_not_call(&self, list: &str, numbers: Vec<u64>, at_ms: UnixMs) -> Result<u64> {
        self.write((list.to_owned(), numbers), move |c, deleting| delete(c, deleting, at_ms).boxed()).await
    }

    async fn do_not_call(&self, list: &str, after_change: i64, limit: u32) -> Result<Vec<ListedNumber>> {
        let sql =
            "SELECT number, change, reason, changed_at FROM do_not_call WHERE list = $1 AND listed AND change > $2
             ORDER BY change LIMIT $3";
        self.select(sql, binds![list.to_owned(), after_change, limit].into(), listed).await
    }

    async fn do_not_call_number(&self, list: &str, number: u64) -> Result<Option<ListedNumber>> {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        let sql =
            "SELECT number, change, reason, changed_at FROM do_not_call WHERE list = $1 AND number = $2 AND listed";
        Ok(self.select(sql, binds![list.to_owned(), number].into(), listed).await?.pop())
    }

    async fn do_not_call_changes(&self, after_change: i64, limit: u32) -> Result<ListChanges> {
        self.read((), move |c, ()| changes(c, after_change, limit).boxed()).await
    }
}
