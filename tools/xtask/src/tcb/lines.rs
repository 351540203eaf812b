//! Counts lines of source. A small lexer tells code from comments, strings and tests.

use std::collections::BTreeSet;

/// What a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Lines of Rust, assembly apart.
    pub rust: usize,
    /// Lines of assembly, in a file of its own or in the strings of `asm!` and its kin.
    pub assembly: usize,
    /// Unsafe blocks, functions and implementations.
    pub unsafe_blocks: usize,
}

/// What a character of the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Code,
    Text,
    Comment,
}

/// Counts a Rust file, without comments, blank lines and `#[cfg(test)]` modules.
pub fn count(source: &str) -> Count {
    let (chars, kinds) = classify(source);
    let kinds = without_tests(&chars, kinds);
    let code: String = chars.iter().zip(&kinds).map(|(&c, &kind)| if kind == Kind::Code { c } else { ' ' }).collect();
    let mut count = Count { unsafe_blocks: unsafe_uses(&code), ..Count::default() };
    let (mut has_code, mut has_text) = (false, false);
    let mut in_assembly = false;
    let mut code_line = String::new();
    let mut end_line = |has_code: &mut bool, has_text: &mut bool, code_line: &mut String| {
        if code_line.contains("asm!") {
            in_assembly = true;
        }
        match (*has_code, *has_text) {
            // Only a string, inside asm!(…): an instruction.
            (_, true) if in_assembly && code_line.trim().trim_matches(',').is_empty() => count.assembly += 1,
            (true, _) | (_, true) => count.rust += 1,
            _ => {}
        }
        if in_assembly && code_line.trim_end().ends_with([';', '}']) {
            in_assembly = false;
        }
        (*has_code, *has_text) = (false, false);
        code_line.clear();
    };
    for (&c, &kind) in chars.iter().zip(&kinds) {
        if c == '\n' {
            end_line(&mut has_code, &mut has_text, &mut code_line);
            continue;
        }
        let visible = !c.is_whitespace();
        has_code |= visible && kind == Kind::Code;
        has_text |= visible && kind == Kind::Text && c != '"';
        if kind == Kind::Code {
            code_line.push(c);
        }
    }
    end_line(&mut has_code, &mut has_text, &mut code_line);
    count
}

/// Counts an assembly file.
pub fn count_assembly(source: &str) -> Count {
    let code = |line: &&str| !line.is_empty() && !line.starts_with('#') && !line.starts_with("//");
    Count { assembly: source.lines().map(str::trim).filter(code).count(), ..Count::default() }
}

/// Collects the modules of crate `of` that a source names, as `of::module` or `of::{module, …}`.
pub fn modules(source: &str, of: &str, into: &mut BTreeSet<String>) {
    let (chars, kinds) = classify(source);
    let kinds = without_tests(&chars, kinds);
    let code: String = chars.iter().zip(&kinds).map(|(&c, &kind)| if kind == Kind::Code { c } else { ' ' }).collect();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let path = format!("{of}::");
    for (at, _) in code.match_indices(&path) {
        let rest = code[at + path.len()..].trim_start();
        let Some(list) = rest.strip_prefix('{') else {
            into.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    into.insert(word(&list[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    into.remove("");
}

/// Unsafe blocks, functions with a body, implementations. What is only declared unsafe (types, extern items)
/// isn't counted.
fn unsafe_uses(code: &str) -> usize {
    let words: Vec<&str> = code.split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let mut uses = 0;
    for (at, word) in words.iter().enumerate() {
        if word.trim_end_matches(|c: char| !(c.is_alphanumeric() || c == '_')) != "unsafe" {
            continue;
        }
        let rest = words[at..].concat();
        let rest = rest["unsafe".len()..].trim_start();
        if rest.starts_with('{') || rest.starts_with("impl") {
            uses += 1;
        }
    }
    uses
}

/// Whether each character is code, inside a string or inside a comment. Quotes of strings are text.
fn classify(source: &str) -> (Vec<char>, Vec<Kind>) {
    let chars: Vec<char> = source.chars().collect();
    let mut kinds = vec![Kind::Code; chars.len()];
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        let start = i;
        let kind = match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
                Kind::Comment
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
                Kind::Comment
            }
            ('r', '"' | '#') if !(i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_') && at(i - 1) != 'b') => {
                let hashes = (i + 1..).take_while(|&j| at(j) == '#').count();
                if at(i + 1 + hashes) == '"' {
                    i += 2 + hashes;
                    while i < chars.len() && !(at(i) == '"' && (1..=hashes).all(|j| at(i + j) == '#')) {
                        i += 1;
                    }
                    i += 1 + hashes;
                    Kind::Text
                } else {
                    i += 1;
                    Kind::Code
                }
            }
            ('"', _) => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                Kind::Text
            }
            // A character, not a lifetime.
            ('\'', '\\') => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
                Kind::Text
            }
            ('\'', _) if at(i + 2) == '\'' => {
                i += 3;
                Kind::Text
            }
            _ => {
                i += 1;
                Kind::Code
            }
        };
        let end = i.min(chars.len());
        kinds[start..end].fill(kind);
    }
    (chars, kinds)
}

/// Makes comments of what isn't compiled for the machine: tests, models, the host's side.
fn without_tests(chars: &[char], mut kinds: Vec<Kind>) -> Vec<Kind> {
    let mark: Vec<char> = "#[cfg(".chars().collect();
    let mut i = 0;
    while i < chars.len() {
        if kinds[i] != Kind::Code || !chars[i..].starts_with(&mark) {
            i += 1;
            continue;
        }
        let length = chars[i..].iter().position(|&c| c == ']').unwrap_or(chars.len() - i - 1) + 1;
        let condition: String = chars[i + mark.len() - 1..i + length - 1].iter().collect();
        let after = i + length;
        if super::cfg::holds(&condition) {
            i = after;
            continue;
        }
        let end = item_end(chars, &kinds, after);
        kinds[i..end].fill(Kind::Comment);
        i = end;
    }
    kinds
}

/// Where the item, field or match arm ends that begins at `start`.
fn item_end(chars: &[char], kinds: &[Kind], start: usize) -> usize {
    let first: String =
        chars[start..].iter().skip_while(|c| c.is_whitespace()).take_while(|c| c.is_alphanumeric()).collect();
    let item = ["pub", "fn", "use", "mod", "struct", "enum", "impl", "static", "const", "unsafe", "extern", "let"];
    let comma_ends = !item.contains(&first.as_str());
    let mut depth = 0;
    for end in (start..chars.len()).filter(|&at| kinds[at] == Kind::Code) {
        match chars[end] {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if depth < 0 {
                    return end;
                }
                if depth == 0 && chars[end] == '}' {
                    return end + 1;
                }
            }
            ';' if depth == 0 => return end + 1,
            ',' if depth == 0 && comma_ends => return end + 1,
            _ => {}
        }
    }
    chars.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blanks_and_tests_do_not_count() {
        let source = "//! doc\n\nfn a() { // c\n    /* x\n    y */ let _ = \"//\";\n}\n\
                      #[cfg(test)]\nmod tests {\n    fn b() { let _ = '}'; }\n}\n\
                      #[cfg(test)]\nmod more;\nconst C: char = '\"'; // \"\nconst D: &str = r#\"}\"#;\n";
        assert_eq!(count(source), Count { rust: 5, assembly: 0, unsafe_blocks: 0 });
    }

    #[test]
    fn what_the_machine_does_not_get_does_not_count() {
        let source = "#[cfg(loom)]\nuse loom::x;\n#[cfg(not(loom))]\nuse core::x;\nstruct S {\n    #[cfg(test)]\n\
                      a: Vec<(u8, u8)>,\n    b: u8,\n}\n#[cfg(all(test, not(loom)))]\nfn f<A, B>() {\n}\nfn g() {}\n";
        assert_eq!(count(source).rust, 6);
    }

    #[test]
    fn unsafe_is_counted_where_it_does_something() {
        let source = "unsafe fn f() { unsafe { g() } }\nunsafe impl Sync for X {}\nfn not_unsafe() {}\n// unsafe {}\n\
                      unsafe extern \"C\" { fn h(); }\nlet x = unsafe\n  { 1 };\n\"unsafe {}\";\n";
        assert_eq!(count(source).unsafe_blocks, 3);
    }

    #[test]
    fn instructions_are_told_from_rust() {
        let source =
            "asm!(\n    \"mov rax, 1\",\n    // c\n    \"ret\",\n    options(noreturn)\n);\nlet s =\n    \"x\";\n";
        assert_eq!(count(source), Count { rust: 5, assembly: 2, unsafe_blocks: 0 });
        assert_eq!(count_assembly("# c\nmov rax, 1\n\n// d\nret\n").assembly, 2);
    }

    #[test]
    fn modules_are_found_in_every_form() {
        let mut found = BTreeSet::new();
        let source = "use caisson_proto::{abi, addr::{Gpa, Spa}, wire::Words};\nuse caisson_proto::kernel::Caps;\n\
                      #[cfg(test)]\nmod t { use caisson_proto::vmm; }\n// caisson_proto::ring\n";
        modules(source, "caisson_proto", &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["abi", "addr", "kernel", "wire"]);
    }
}
