//! One PTX image a kernel: split from its unit, with launch bounds written and names made independent of the build.
//!
//! A driver compiles a whole module when it loads it; with one image a kernel it compiles only what is launched.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::annotation::{self, Annotation};
use crate::ptx::{self, Item, ItemKind, Module};
use crate::{Arch, Error};

/// A parameter of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Param {
    /// Bytes from the start of the parameter block.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel for one architecture, before it is packed.
#[derive(Clone, Debug)]
pub struct Image {
    /// The unit it comes from.
    pub unit: String,
    /// The architecture.
    pub arch: Arch,
    /// Name, bounds and what the lints shall expect.
    pub annotation: Annotation,
    /// The parameters in order.
    pub params: Vec<Param>,
    /// Bytes of statically sized shared memory.
    pub static_shared: u32,
    /// Alignment of the shared memory whose size the launch gives; `None` when the kernel uses none.
    pub dynamic_shared_align: Option<u32>,
    /// The PTX language version.
    pub ptx_version: String,
    /// The PTX.
    pub text: String,
    /// [`text`](Image::text) with the compiler's names, line for line the same: the lints name what they find.
    pub(crate) raw: String,
}

/// Splits the compiler's output for one unit into images.
///
/// # Errors
/// [`Error::Ptx`] when the text is not a module; [`Error::Annotation`] when an entry lacks its annotation, an annotation
/// its entry, or the two do not fit.
pub fn split(unit: &str, arch: Arch, text: &str) -> Result<Vec<Image>, Error> {
    let malformed = |line: usize, message: String| Error::Ptx {
        unit: unit.into(),
        arch,
        line,
        message,
    };
    let wrong = |entry: &str, message: String| Error::Annotation {
        unit: unit.into(),
        arch,
        entry: entry.into(),
        message,
    };
    let module = ptx::parse(text).map_err(|error| malformed(error.line, error.message))?;
    if module.target.split(',').next().map(str::trim) != Some(arch.name()) {
        return Err(malformed(1, format!("the module is for {}", module.target)));
    }

    let mut annotations: BTreeMap<String, Annotation> = BTreeMap::new();
    for (line, comment) in &module.comments {
        match annotation::parse(comment) {
            None => {}
            Some(Err((name, message))) => {
                return Err(wrong(&name, format!("{message} (annotation on line {line})")));
            }
            Some(Ok(annotation)) => {
                if let Some(first) = annotations.insert(annotation.name.clone(), annotation) {
                    return Err(wrong(&first.name, "annotated twice".into()));
                }
            }
        }
    }

    let mut images = Vec::new();
    for entry in module.items.iter().filter(|item| item.kind == ItemKind::Entry) {
        let mut annotation = annotations
            .remove(&entry.name)
            .ok_or_else(|| wrong(&entry.name, "no annotation: declare it with cuda_std::kernel!".into()))?;
        if annotation.cluster.is_some() && !arch.has_clusters() {
            return Err(wrong(
                &entry.name,
                format!("annotated with a cluster, which {arch} does not have"),
            ));
        }
        let params = params(&entry.text, annotation.param_align)
            .ok_or_else(|| malformed(entry.line, format!("cannot read the parameters of `{}`", entry.name)))?;
        annotation.tensor_core |= ptx::statements(&entry.text, entry.line)
            .iter()
            .any(ptx::Statement::is_tensor_core);
        let reachable = reachable(&module, entry);
        let shared = SharedUse::of(&reachable);
        let raw = render(&module, &reachable, entry, &annotation);
        let text = normalise(&raw, &reachable, entry);
        images.push(Image {
            unit: unit.into(),
            arch,
            annotation,
            params,
            static_shared: shared.static_bytes,
            dynamic_shared_align: shared.dynamic_align,
            ptx_version: module.version.clone(),
            text,
            raw,
        });
    }
    if let Some(name) = annotations.into_keys().next() {
        return Err(wrong(&name, "annotated, but the unit has no such entry".into()));
    }
    Ok(images)
}

/// The items the entry needs, itself included, in the order of the module.
fn reachable<'a>(module: &'a Module, entry: &'a Item) -> Vec<&'a Item> {
    let by_name: HashMap<&str, usize> = module
        .items
        .iter()
        .enumerate()
        .map(|(index, item)| (item.name.as_str(), index))
        .collect();
    let mut needed = vec![false; module.items.len()];
    let mut queue = vec![by_name[entry.name.as_str()]];
    while let Some(index) = queue.pop() {
        if std::mem::replace(&mut needed[index], true) {
            continue;
        }
        let item = &module.items[index];
        queue.extend(
            ptx::identifiers(&item.text)
                .filter_map(|name| by_name.get(name))
                .filter(|&&other| other != index),
        );
        // A function that is declared first and defined later: both items carry the name.
        queue.extend((0..module.items.len()).filter(|&other| other != index && module.items[other].name == item.name));
    }
    module
        .items
        .iter()
        .zip(needed)
        .filter_map(|(item, needed)| needed.then_some(item))
        .collect()
}

/// The image's text with the compiler's names.
fn render(module: &Module, items: &[&Item], entry: &Item, annotation: &Annotation) -> String {
    let mut text = format!(
        ".version {}\n.target {}\n.address_size 64\n",
        module.version, module.target
    );
    for item in items {
        text.push('\n');
        if item.name == entry.name {
            text.push_str(&with_bounds(&item.text, annotation));
        } else {
            text.push_str(&item.text);
        }
    }
    text
}

/// An entry with its performance directives between parameters and body, and its parameters aligned.
fn with_bounds(entry: &str, annotation: &Annotation) -> String {
    let (head, body) = entry.split_at(entry.find('{').unwrap_or(entry.len()));
    let mut text = match annotation.param_align {
        Some(align) => align_params(head, align),
        None => head.to_string(),
    };
    let [x, y, z] = annotation.threads;
    let mut write = |directive: std::fmt::Arguments<'_>| {
        text.write_fmt(directive).expect("writing to a String does not fail");
        text.push('\n');
    };
    write(format_args!(".reqntid {x}, {y}, {z}"));
    if let Some(blocks) = annotation.min_blocks {
        write(format_args!(".minnctapersm {blocks}"));
    }
    if let Some([x, y, z]) = annotation.cluster {
        write(format_args!(".reqnctapercluster {x}, {y}, {z}"));
    }
    text.push_str(body);
    text
}

/// The parameter list with `.param .align N .b8 name[…]` aligned to at least `align`.
fn align_params(head: &str, align: u32) -> String {
    let mut text = String::new();
    for line in head.lines() {
        match line.split_once(".align ") {
            Some((before, after)) if line.contains(".param") && line.contains('[') => {
                let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                let own: u32 = after[..digits].parse().unwrap_or(1);
                text.push_str(&format!("{before}.align {}{}", own.max(align), &after[digits..]));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// Offsets, sizes and alignments of an entry's parameters; `None` when they cannot be read.
fn params(entry: &str, align_to: Option<u32>) -> Option<Vec<Param>> {
    let head = &entry[..entry.find('{')?];
    let Some(open) = head.find('(') else {
        return Some(Vec::new());
    };
    let list = &head[open + 1..head.rfind(')')?];
    let mut found = Vec::new();
    let mut end = 0u32;
    for declaration in list
        .split(',')
        .map(str::trim)
        .filter(|declaration| !declaration.is_empty())
    {
        let declared: Vec<&str> = declaration.split_whitespace().collect();
        if declared.first() != Some(&".param") {
            return None;
        }
        // `.ptr .global .align 4` describes what a pointer points to, not the parameter.
        let pointer = declared
            .iter()
            .position(|word| *word == ".ptr")
            .unwrap_or(declared.len());
        let own = declared[..pointer].iter().position(|word| *word == ".align");
        let scalar = declared.iter().find_map(|word| type_bytes(word))?;
        let count = match declaration.split_once('[') {
            Some((_, rest)) => rest.split(']').next()?.trim().parse().ok()?,
            None => 1,
        };
        let mut align = match own {
            Some(at) => declared.get(at + 1)?.parse().ok()?,
            None => scalar,
        };
        if declaration.contains('[') {
            align = align.max(align_to.unwrap_or(1));
        }
        let offset = end.checked_next_multiple_of(align)?;
        let bytes = scalar.checked_mul(count)?;
        end = offset.checked_add(bytes)?;
        found.push(Param { offset, bytes, align });
    }
    Some(found)
}

/// The size of a fundamental type: `.u64` is 8.
fn type_bytes(word: &str) -> Option<u32> {
    let bits = word.strip_prefix(['.'])?.strip_prefix(['b', 'u', 's', 'f'])?;
    match bits {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        "128" => Some(16),
        _ => None,
    }
}

/// How an image uses shared memory.
#[derive(Debug, Default, PartialEq, Eq)]
struct SharedUse {
    static_bytes: u32,
    dynamic_align: Option<u32>,
}

impl SharedUse {
    fn of(items: &[&Item]) -> SharedUse {
        let mut found = SharedUse::default();
        for item in items {
            match item.kind {
                ItemKind::Variable => found.add(&item.text),
                // Inline assembly and LLVM may declare shared variables inside a body.
                ItemKind::Entry | ItemKind::Function => {
                    for statement in ptx::statements(&item.text, 1).iter().filter(|s| s.opcode == ".shared") {
                        found.add(&format!(".shared {}", statement.operands));
                    }
                }
            }
        }
        found
    }

    fn add(&mut self, declaration: &str) {
        let words: Vec<&str> = ptx::words(declaration.split(['[', '=', ';']).next().unwrap_or_default()).collect();
        if !words.contains(&".shared") {
            return;
        }
        let scalar = words.iter().find_map(|word| type_bytes(word)).unwrap_or(1);
        let align = words
            .iter()
            .position(|word| *word == ".align")
            .and_then(|at| words.get(at + 1)?.parse().ok());
        let align = align.unwrap_or(scalar);
        let extents: Vec<&str> = declaration
            .split('[')
            .skip(1)
            .filter_map(|part| part.split(']').next())
            .collect();
        if words.contains(&".extern") || extents.iter().any(|extent| extent.trim().is_empty()) {
            self.dynamic_align = Some(self.dynamic_align.unwrap_or(1).max(align));
            return;
        }
        let count: u32 = extents
            .iter()
            .filter_map(|extent| extent.trim().parse::<u32>().ok())
            .product();
        self.static_bytes = self.static_bytes.next_multiple_of(align) + scalar * count;
    }
}

/// Renames what carries hashes of the build or the place of a kernel in its unit: variables and functions get their
/// kind and a number, labels (`$L__BB7_3`) the number of the first kernel.
fn normalise(raw: &str, items: &[&Item], entry: &Item) -> String {
    let mut names: HashMap<&str, String> = HashMap::new();
    for item in items.iter().filter(|item| item.name != entry.name) {
        let stem = match item.kind {
            ItemKind::Function => "function",
            ItemKind::Variable if item.text.contains(".shared") => "shared",
            ItemKind::Variable => "data",
            ItemKind::Entry => "entry",
        };
        let number = names.len();
        names
            .entry(item.name.as_str())
            .or_insert_with(|| format!("{stem}_{number}"));
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(start) = rest.find(ptx::is_identifier_char) {
        text.push_str(&rest[..start]);
        let word = &rest[start..];
        let end = word.find(|c| !ptx::is_identifier_char(c)).unwrap_or(word.len());
        let name = &word[..end];
        match names.get(name) {
            Some(new) => text.push_str(new),
            None => text.push_str(&local_name(name)),
        }
        rest = &word[end..];
    }
    text.push_str(rest);
    text
}

/// LLVM numbers labels and depots by the function's place in the module.
fn local_name(name: &str) -> std::borrow::Cow<'_, str> {
    for prefix in ["$L__BB", "__local_depot"] {
        if let Some(rest) = name.strip_prefix(prefix) {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            if digits > 0 {
                return format!("{prefix}0{}", &rest[digits..]).into();
            }
        }
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(hash: &str, before: &str) -> String {
        let function = before.matches(".entry").count();
        format!(
            "//\n.version 8.3\n.target sm_90a\n.address_size 64\n\n\
             // @kernel name=k threads=128, min_blocks=2 cluster=2, param_align=64\n\
             {before}\
             .extern .shared .align 128 .b8 dyn_{hash}[];\n\
             .shared .align 8 .b8 bars_{hash}[24];\n\
             .global .align 4 .b8 table_{hash}[4] = {{1, 2, 3, 4}};\n\
             .global .align 4 .b8 unused_{hash}[4];\n\
             .visible .entry k(\n\t.param .align 8 .b8 k_param_0[140],\n\t.param .u64 .ptr .align 1 k_param_1\n)\n\
             {{\n\t// begin inline asm\n\tmov.u64 %rd1, table_{hash};\n\tmov.b32 %r1, dyn_{hash};\n\
             \tmov.b32 %r2, bars_{hash};\n$L__BB{function}_1:\n\tbra $L__BB{function}_1;\n}}\n"
        )
    }

    const OTHER: &str =
        "// @kernel name=other threads=32,\n.visible .entry other()\n{\n$L__BB0_1:\n\tbra $L__BB0_1;\n}\n";

    #[test]
    fn bounds_alignment_and_metadata_come_from_the_annotation() {
        let images = split("u", Arch::Sm90a, &unit("h1", "")).unwrap();
        let [image] = &images[..] else {
            panic!("one image expected")
        };
        assert!(
            image
                .text
                .contains(")\n.reqntid 128, 1, 1\n.minnctapersm 2\n.reqnctapercluster 2, 1, 1\n{"),
            "{}",
            image.text
        );
        assert!(
            image.text.contains(".param .align 64 .b8 k_param_0[140]"),
            "{}",
            image.text
        );
        assert!(
            image.text.contains(".param .u64 .ptr .align 1 k_param_1"),
            "{}",
            image.text
        );
        let params = [
            Param {
                offset: 0,
                bytes: 140,
                align: 64,
            },
            Param {
                offset: 144,
                bytes: 8,
                align: 8,
            },
        ];
        assert_eq!(image.params, params);
        assert_eq!((image.static_shared, image.dynamic_shared_align), (24, Some(128)));
        assert_eq!(image.ptx_version, "8.3");
    }

    #[test]
    fn an_image_holds_only_what_its_kernel_reaches() {
        let images = split("u", Arch::Sm90a, &unit("h1", OTHER)).unwrap();
        assert_eq!(images.len(), 2);
        assert!(!images[0].text.contains("data_") && !images[0].text.contains(".entry k"));
        assert!(!images[1].text.contains("unused") && !images[1].text.contains("other"));
    }

    #[test]
    fn neither_build_hashes_nor_neighbours_change_the_text() {
        let alone = split("u", Arch::Sm90a, &unit("h1", "")).unwrap();
        let beside = split("u", Arch::Sm90a, &unit("h2", OTHER)).unwrap();
        assert_eq!(alone[0].text, beside[1].text);
        assert_ne!(alone[0].raw, beside[1].raw);
        assert_eq!(alone[0].text.lines().count(), alone[0].raw.lines().count());
    }

    #[test]
    fn entries_and_annotations_must_pair_up() {
        let text = unit("h", "");
        let stripped = text.replace("// @kernel", "// kernel");
        assert!(
            split("u", Arch::Sm90a, &stripped)
                .unwrap_err()
                .to_string()
                .contains("no annotation")
        );
        let extra = text.replace("// @kernel", "// @kernel name=ghost threads=32,\n// @kernel");
        let message = split("u", Arch::Sm90a, &extra).unwrap_err().to_string();
        assert!(
            message.contains("`ghost`") && message.contains("no such entry"),
            "{message}"
        );
        let older = text.replace("sm_90a", "sm_80");
        assert!(
            split("u", Arch::Sm80, &older)
                .unwrap_err()
                .to_string()
                .contains("cluster")
        );
        assert!(
            split("u", Arch::Sm80, &text)
                .unwrap_err()
                .to_string()
                .contains("sm_90a")
        );
    }
}
