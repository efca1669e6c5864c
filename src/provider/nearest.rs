//! The word that was probably meant. Pure.

/// The word of a list that is nearest to what was written, if one is near (Levenshtein, at most a third of its letters).
pub fn closest<'w>(written: &str, words: &[&'w str]) -> Option<&'w str> {
    let nearest = words.iter().map(|word| (distance(written, word), *word)).min()?;
    (nearest.0 * 3 <= written.chars().count().max(3)).then_some(nearest.1)
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
