//! Which `cfg` conditions hold on the machine.

/// Whether a condition, in its parentheses, holds in a build for the bare machine. What isn't known holds, so
/// that rather too much is counted than too little.
pub fn holds(condition: &str) -> bool {
    let text: String = condition.chars().filter(|c| !c.is_whitespace()).collect();
    inner(text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(&text))
}

fn inner(text: &str) -> bool {
    let arguments = |name: &str| {
        text.strip_prefix(name).and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.strip_suffix(')'))
    };
    if let Some(list) = arguments("all") {
        return split(list).into_iter().all(inner);
    }
    if let Some(list) = arguments("any") {
        return split(list).into_iter().any(inner);
    }
    if let Some(one) = arguments("not") {
        return !inner(one);
    }
    match text.split_once('=') {
        Some(("target_os", os)) => os == "\"none\"",
        Some(("target_arch", arch)) => arch == "\"x86_64\"",
        Some(_) => true,
        None => !["test", "loom", "miri", "fuzzing", "doc", "debug_assertions", "unix"].contains(&text),
    }
}

/// The parts between commas that aren't inside parentheses.
fn split(list: &str) -> Vec<&str> {
    let mut depth = 0;
    let outside = move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    };
    list.split(outside).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_understood() {
        for yes in
            ["(not(loom))", "(target_os = \"none\")", "(any(test, target_os=\"none\"))", "(all())", "(feature = \"x\")"]
        {
            assert!(holds(yes), "{yes}");
        }
        for no in
            ["(test)", "(all(test, not(loom)))", "(not(target_os = \"none\"))", "(any(loom, all(miri, not(test))))"]
        {
            assert!(!holds(no), "{no}");
        }
    }
}
