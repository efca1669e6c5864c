//! Translation of Postgres's dialect, in which queries are written, to SQLite's.

/// Replacements, applied in order.
const WORDS: &[(&str, &str)] = &[
    // The index to use: SQLite's planner would scan all calls in order, to avoid a sort.
    ("/*+ ", ""),
    (" */", ""),
    ("(extract(epoch FROM clock_timestamp()) * 1000)", "CAST(unixepoch('subsec') * 1000 AS INTEGER)"),
    ("to_json(keys)", "keys"),
    ("json_agg(", "json_group_array("),
    ("json_build_array(", "json_array("),
    ("::text", ""),
    ("::bigint", ""),
    ("greatest(", "max("),
    // There is one writer.
    (" FOR UPDATE OF d SKIP LOCKED", ""),
    (" FOR UPDATE OF d FOR SHARE OF r", ""),
    (" FOR UPDATE OF d", ""),
    (" FOR UPDATE", ""),
    (" FOR SHARE", ""),
    ("pg_tables WHERE schemaname = 'ringfence' AND tablename", "sqlite_master WHERE type = 'table' AND name"),
];

/// Translates a statement, with this number of columns in `{rows}`. Lists are passed as JSON.
pub(super) fn translate(sql: &str, columns: usize) -> String {
    let mut sql = WORDS.iter().fold(sql.to_owned(), |sql, (theirs, ours)| sql.replace(theirs, ours));
    while let Some((before, after)) = sql.split_once("= ANY(ARRAY(") {
        let Some((list, rest)) = split_closed(after).and_then(|(list, rest)| Some((list, rest.strip_prefix(')')?)))
        else {
            break;
        };
        sql = format!("{before}IN ({list}){rest}");
    }
    for (theirs, ours) in [("= ANY(", "IN "), ("<> ALL(", "NOT IN ")] {
        while let Some((before, after)) = sql.split_once(theirs) {
            let Some((list, rest)) = after.split_once(')') else { break };
            sql = format!("{before}{ours}(SELECT value FROM json_each({list})){rest}");
        }
    }
    let row = (1..=columns).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ");
    // SQLite would treat `$1` as a name, numbered in order of appearance.
    sql.replace("{rows}", &format!("({row})")).replace('$', "?")
}

/// Returns the text before the parenthesis that closes the one before `sql`, and the text after it.
fn split_closed(sql: &str) -> Option<(&str, &str)> {
    let mut open = 1;
    let end = sql.find(|c| {
        open += i32::from(c == '(') - i32::from(c == ')');
        open == 0
    })?;
    Some((&sql[..end], &sql[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_of_postgres_becomes_one_of_sqlite() {
        for (theirs, ours) in [
            (
                "SELECT 1 FROM t WHERE id = ANY($2) AND x <> ALL($1)",
                "SELECT 1 FROM t WHERE id IN (SELECT value FROM json_each(?2)) AND x NOT IN (SELECT value FROM json_each(?1))",
            ),
            (
                "SELECT id FROM calls /*+ INDEXED BY calls_open */ WHERE x LIMIT $1 FOR UPDATE",
                "SELECT id FROM calls INDEXED BY calls_open WHERE x LIMIT ?1",
            ),
            (
                "DELETE FROM t WHERE id = ANY(ARRAY(SELECT id FROM t WHERE x = ANY($2) LIMIT $1 FOR UPDATE)) AND y = 1",
                "DELETE FROM t WHERE id IN (SELECT id FROM t WHERE x IN (SELECT value FROM json_each(?2)) LIMIT ?1) AND y = 1",
            ),
            (
                "INSERT INTO t (a, b) VALUES {rows} ON CONFLICT DO NOTHING",
                "INSERT INTO t (a, b) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            ),
            (
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint - beat_at",
                "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) - beat_at",
            ),
        ] {
            assert_eq!(translate(theirs, 2), ours);
        }
    }
}
