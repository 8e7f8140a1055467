//! Text of builders on its way to a terminal: they may write anything.

/// One line without anything that a terminal would act on.
pub fn plain(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    let line = String::from_utf8_lossy(line);
    let mut rest = line.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '\x1b' => match rest.next() {
                // CSI: parameters and intermediate bytes, then one letter.
                Some('[') => while rest.next().is_some_and(|one| !('\x40'..='\x7e').contains(&one)) {},
                // Strings: to BEL or ST.
                Some(']' | 'P' | '_' | '^' | 'X') => {
                    while let Some(one) = rest.next() {
                        if one == '\x07' || (one == '\x1b' && rest.next_if_eq(&'\\').is_some()) {
                            break;
                        }
                    }
                }
                _ => {}
            },
            '\t' => text.push(letter),
            control if control.is_control() => {}
            other => text.push(other),
        }
    }
    text
}
