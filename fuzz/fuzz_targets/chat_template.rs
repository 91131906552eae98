//! Any text is a chat template.
#![no_main]

use models::{ChatTemplate, Message, Role};

libfuzzer_sys::fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, [("bos_token".to_owned(), "<s>".to_owned())]) {
        let _ = template.render(&[Message::new(Role::User, "Hello.")], true);
    }
});
