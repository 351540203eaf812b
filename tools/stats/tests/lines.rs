//! What the console sends is what it has; what was lost or isn't an answer is noticed.

use caisson_stats::lines::{Answer, Collector};

fn feed(lines: &[&str]) -> Option<Answer> {
    let mut collector = Collector::new(1);
    lines.iter().filter_map(|line| collector.feed(line.as_bytes())).next()
}

fn words(answer: Option<Answer>) -> Vec<(usize, u64)> {
    let Some(Answer::Pages(pages)) = answer else { panic!("no pages but {answer:?}") };
    assert_eq!(pages.len(), 9);
    let words = pages.concat().as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect::<Vec<_>>();
    words.into_iter().enumerate().filter(|(_, word)| *word != 0).collect()
}

#[test]
fn an_answer_is_put_together() {
    let lines = ["00ff", "s2 0 1", "s1  5  ff", "s1 200 1", "s2 end 9", "s1 end 2"];
    assert_eq!(words(feed(&lines)), [(0, 5), (2, 0xff), (512, 1)]);
    assert_eq!(words(feed(&["s1 end "])), []);
    assert_eq!(feed(&["s1 none"]), Some(Answer::NoSuchVm));
    assert_eq!(feed(&["s1 0 1"]), None);
}

#[test]
fn what_was_lost_is_noticed() {
    assert_eq!(feed(&["s1  1", "s1 end 2"]), Some(Answer::Torn));
    assert_eq!(feed(&["s1 end 1 1"]), Some(Answer::Torn));
    for bad in
        ["s1 g 1", "s1  01", "s1  +1", "s1  1ffffffffffffffff", "s1 1200 1", "s1 ffffffffffffffff 1 1", "s1  \u{e9}"]
    {
        assert_eq!(feed(&[bad, "s1 end 1"]), Some(Answer::Torn), "{bad}");
    }
    let long = format!("s1 {}", " 1".repeat(17));
    assert_eq!(feed(&[&long, "s1 end 1"]), Some(Answer::Torn));
}
