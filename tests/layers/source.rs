//! Reads just enough of Rust to know which paths a file names: no parser, a list of tokens.

/// A path as it stands in the source. `ours` paths begin with the top-level module they name.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    pub ours: bool,
    pub segments: Vec<String>,
}

/// Every path of more than one segment and everything a `use` names, its groups spelled out.
pub fn paths(tokens: &[Token<'_>], module: &[String]) -> Vec<Named> {
    let mut found = Vec::new();
    let mut inline: Vec<(String, usize)> = Vec::new(); // `mod name { … }` and the depth of its brace
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let token = &tokens[at];
        if token.is("{") {
            depth += 1;
        } else if token.is("}") {
            depth -= 1;
            if inline.last().is_some_and(|(_, d)| *d == depth) {
                inline.pop();
            }
        } else if token.is("mod") && tokens.get(at + 2).is_some_and(|t| t.is("{")) {
            inline.push((tokens[at + 1].text.to_owned(), depth));
        } else if token.is_ident() && !(at > 0 && tokens[at - 1].is("::")) {
            let used = at > 0 && tokens[at - 1].is("use");
            if used || tokens.get(at + 1).is_some_and(|t| t.is("::")) {
                let here: Vec<String> = module
                    .iter()
                    .cloned()
                    .chain(inline.iter().map(|(name, _)| name.clone()))
                    .collect();
                let mut spelled = Vec::new();
                let next = spell(tokens, at, &[], &mut spelled);
                for (line, segments) in spelled {
                    found.extend(resolve(&here, line, segments));
                }
                at = next;
                continue;
            }
        }
        at += 1;
    }
    found
}

/// Spells out the path that begins at `at`, with `prefix` before it; returns where it ends.
fn spell(
    tokens: &[Token<'_>],
    mut at: usize,
    prefix: &[String],
    into: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[at].line;
    while let Some(token) = tokens.get(at) {
        if token.is("{") {
            at += 1;
            while tokens.get(at).is_some_and(|t| !t.is("}")) {
                at = if tokens[at].is_ident() || tokens[at].is("{") {
                    spell(tokens, at, &path, into)
                } else {
                    at + 1 // a comma, a star, an `as`
                };
            }
            return at + 1;
        }
        if !token.is_ident() {
            break;
        }
        path.push(token.text.to_owned());
        at += 1;
        if !tokens.get(at).is_some_and(|t| t.is("::")) {
            break;
        }
        at += 1;
    }
    into.push((line, path));
    at
}

/// Turns `crate::`, `super::` and `self::` into the top-level module named, if any is.
fn resolve(here: &[String], line: usize, segments: Vec<String>) -> Option<Named> {
    let mut base: Option<Vec<String>> = None;
    let mut rest = segments.into_iter().peekable();
    while let Some(segment) = rest.peek() {
        match segment.as_str() {
            "crate" | "ecr_proxy" => base = Some(Vec::new()),
            "self" => base = Some(base.unwrap_or_else(|| here.to_vec())),
            "super" => {
                let mut up = base.unwrap_or_else(|| here.to_vec());
                up.pop();
                base = Some(up);
            }
            _ => break,
        }
        rest.next();
    }
    let ours = base.is_some();
    let segments: Vec<String> = base.unwrap_or_default().into_iter().chain(rest).collect();
    (!segments.is_empty()).then_some(Named {
        line,
        ours,
        segments,
    })
}

#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
}

impl Token<'_> {
    pub fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_ident(&self) -> bool {
        const WORDS: &[&str] = &[
            "use", "mod", "as", "pub", "in", "fn", "let", "impl", "for", "where", "dyn",
        ];
        self.text
            .starts_with(|c: char| c.is_alphabetic() || c == '_')
            && !WORDS.contains(&self.text)
    }
}

/// Identifiers and punctuation, `::` being one; comments, literals and lifetimes are left out.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        let rest = &text[at..];
        at += if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(len) = raw_string(rest) {
            len
        } else if rest.starts_with('"') || rest.starts_with("b\"") || rest.starts_with("c\"") {
            string(rest)
        } else if rest.starts_with('\'') || rest.starts_with("b'") {
            char_or_lifetime(rest)
        } else if rest.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            let len = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            found.push(Token {
                text: &rest[..len],
                line,
            });
            len
        } else if rest.starts_with("::") {
            found.push(Token {
                text: &rest[..2],
                line,
            });
            2
        } else {
            let len = rest.chars().next().map_or(1, char::len_utf8);
            if !rest.starts_with(char::is_whitespace) {
                found.push(Token {
                    text: &rest[..len],
                    line,
                });
            }
            len
        };
        line += bytes[start..at].iter().filter(|b| **b == b'\n').count();
    }
    found
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let r = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = r.len() - r.trim_start_matches('#').len();
    r[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let body = text.len() - r.len() + hashes + 1;
    Some(
        text[body..]
            .find(&close)
            .map_or(text.len(), |end| body + end + close.len()),
    )
}

fn string(text: &str) -> usize {
    let open = text.find('"').expect("the caller saw it");
    let mut escaped = false;
    for (n, byte) in text.bytes().enumerate().skip(open + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return n + 1,
            _ => {}
        }
    }
    text.len()
}

fn char_or_lifetime(text: &str) -> usize {
    let open = text.find('\'').expect("the caller saw it") + 1;
    let mut inside = text[open..].char_indices();
    match inside.next() {
        Some((_, '\\')) => {
            // The escaped character may itself be a quote.
            let after = open + 2;
            text[after..]
                .find('\'')
                .map_or(text.len(), |end| after + end + 1)
        }
        Some(_) => match inside.next() {
            Some((end, '\'')) => open + end + 1,
            _ => open, // a lifetime: its name follows as an identifier without a path
        },
        None => text.len(),
    }
}
