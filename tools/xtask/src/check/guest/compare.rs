//! What the hostile guest got here, beside what it got bare.

use std::collections::{BTreeMap, BTreeSet};

/// Lines by class and mode.
type Lines<'a> = BTreeMap<&'a str, &'a str>;

/// `hostile CLASS MODE: WHAT`. Totals, of which some depend on time, have a word more.
fn line(line: &str) -> Option<(&str, &str)> {
    let (key, what) = line.strip_prefix("hostile ")?.split_once(':')?;
    (key.split(' ').count() == 2).then_some((key, what.trim()))
}

fn lines(output: &str) -> Lines<'_> {
    output.lines().filter_map(|text| line(text.trim_end())).collect()
}

/// Compares what it printed here and bare. `known` has the lines in which this place differs, each under a comment that
/// says why. How many lines are as they should be, and what is wrong.
pub fn compare(ours: &str, bare: &str, known: &str) -> (usize, Vec<String>) {
    let (ours, bare, known) = (lines(ours), lines(bare), lines(known));
    let mut alike = 0;
    let mut wrong = Vec::new();
    let keys: BTreeSet<&str> = ours.keys().chain(bare.keys()).chain(known.keys()).copied().collect();
    for key in keys {
        let (here, there, different) = (ours.get(key), bare.get(key), known.get(key));
        let why = match (here, there, different) {
            (None, _, _) => "it didn't come to this".into(),
            (Some(here), Some(there), None) if here == there => {
                alike += 1;
                continue;
            }
            (Some(here), there, None) => format!("{here} instead of {}", there.unwrap_or(&"nothing")),
            (Some(_), there, Some(_)) if here == there => "is no difference any more".into(),
            (Some(here), _, Some(different)) if here == different => {
                alike += 1;
                continue;
            }
            (Some(here), _, Some(different)) => format!("{here} instead of {different}"),
        };
        wrong.push(format!("{key}: {why}"));
    }
    (alike, wrong)
}

#[cfg(test)]
mod tests {
    use super::compare;

    const BARE: &str = "hostile seed 0x1\nhostile begins a\nhostile a long: +2 6@0\r\nhostile b real:\nhostile c long: 13@0\n\
                        hostile total a long: 5 attempts\nhostile ended a\n";

    #[test]
    fn lines_that_are_alike_pass() {
        assert_eq!(compare(BARE, BARE, "# nothing\n"), (3, vec![]));
        let other = BARE.replace("5 attempts", "6 attempts");
        assert_eq!(compare(&other, BARE, ""), (3, vec![]), "totals aren't compared");
    }

    #[test]
    fn a_difference_is_known_or_wrong() {
        let ours = BARE.replace("+2 6@0", "+2 13@0");
        let (alike, wrong) = compare(&ours, BARE, "");
        assert_eq!((alike, wrong), (2, vec!["a long: +2 13@0 instead of +2 6@0".into()]));
        assert_eq!(compare(&ours, BARE, "# why\nhostile a long: +2 13@0\n"), (3, vec![]));
        let (alike, wrong) = compare(&ours, BARE, "hostile a long: +3\n");
        assert_eq!((alike, wrong), (2, vec!["a long: +2 13@0 instead of +3".into()]));
    }

    #[test]
    fn a_known_difference_that_is_none_is_wrong() {
        let (alike, wrong) = compare(BARE, BARE, "hostile c long: 13@0\n");
        assert_eq!((alike, wrong.len()), (2, 1));
    }

    #[test]
    fn what_is_missing_is_wrong() {
        let ours = BARE.replace("hostile b real:\n", "");
        let (alike, wrong) = compare(&ours, BARE, "hostile d long: 1\n");
        assert_eq!((alike, wrong.len()), (2, 2));
        let (alike, wrong) = compare(BARE, &ours, "");
        assert_eq!((alike, wrong), (2, vec!["b real:  instead of nothing".into()]));
    }
}
