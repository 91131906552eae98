//! `// @kernel name=… threads=…`: what `cuda_std::kernel!` says about an entry.
//!
//! rustc has no attribute for launch bounds, so the macro leaves a comment in the assembly beside the entry.

use serde::{Deserialize, Serialize};

/// The annotation of one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// The entry it belongs to.
    pub name: String,
    /// Threads of a block in x, y and z: launches have exactly these (`.reqntid`).
    pub threads: [u32; 3],
    /// Blocks that must fit on one multiprocessor together (`.minnctapersm`).
    pub min_blocks: Option<u32>,
    /// Blocks of a cluster in x, y and z (`.reqnctapercluster`).
    pub cluster: Option<[u32; 3]>,
    /// Alignment of parameters passed by value; the compiler's own if absent.
    pub param_align: Option<u32>,
    /// Number of block barriers the body must have.
    pub barriers: Option<u32>,
    /// Number of `wgmma.mma_async` the body must have.
    pub wgmma: Option<u32>,
    /// The kernel keeps accumulators in registers: local memory is an error. Implied by tensor-core instructions.
    pub tensor_core: bool,
    /// Double precision is meant.
    pub f64: bool,
}

/// Reads a comment; `None` when it is no annotation.
///
/// # Errors
/// Says what is wrong with a comment that starts with `@kernel`.
pub fn parse(comment: &str) -> Option<Result<Annotation, (String, String)>> {
    let rest = comment.trim().strip_prefix("@kernel")?;
    let mut name = String::new();
    Some(parse_fields(rest, &mut name).map_err(|message| (name, message)))
}

fn parse_fields(fields: &str, entry: &mut String) -> Result<Annotation, String> {
    let mut annotation = Annotation {
        name: String::new(),
        threads: [0; 3],
        min_blocks: None,
        cluster: None,
        param_align: None,
        barriers: None,
        wgmma: None,
        tensor_core: false,
        f64: false,
    };
    let mut seen: Vec<&str> = Vec::new();
    for field in fields.split_whitespace() {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("`{field}` is not key=value"))?;
        if seen.contains(&key) {
            return Err(format!("`{key}` is given twice"));
        }
        seen.push(key);
        match key {
            "name" => {
                annotation.name = value.to_string();
                *entry = value.to_string();
            }
            "threads" => annotation.threads = dimensions(key, value)?,
            "cluster" => annotation.cluster = Some(dimensions(key, value)?),
            "min_blocks" => annotation.min_blocks = Some(number(key, value, 1)?),
            "param_align" => annotation.param_align = Some(number(key, value, 1)?),
            "barriers" => annotation.barriers = Some(number(key, value, 0)?),
            "wgmma" => annotation.wgmma = Some(number(key, value, 0)?),
            "tensor_core" => annotation.tensor_core = number(key, value, 0)? != 0,
            "f64" => annotation.f64 = number(key, value, 0)? != 0,
            _ => {
                return Err(format!(
                    "unknown key `{key}`: expected name, threads, min_blocks, cluster, param_align, barriers, wgmma, \
                     tensor_core or f64"
                ));
            }
        }
    }
    if annotation.name.is_empty() {
        return Err("the annotation has no name".into());
    }
    let [x, y, z] = annotation.threads;
    let total = u64::from(x) * u64::from(y) * u64::from(z);
    if !(1..=1024).contains(&total) || z > 64 {
        return Err(format!(
            "threads={x},{y},{z}: a block has 1 to 1024 threads, at most 64 of them in z"
        ));
    }
    if let Some([x, y, z]) = annotation.cluster {
        let total = u64::from(x) * u64::from(y) * u64::from(z);
        if !(1..=16).contains(&total) {
            return Err(format!("cluster={x},{y},{z}: a cluster has 1 to 16 blocks"));
        }
    }
    if let Some(align) = annotation.param_align
        && !matches!(align, 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128)
    {
        return Err(format!("param_align={align}: expected a power of two up to 128"));
    }
    Ok(annotation)
}

fn number(key: &str, value: &str, least: u32) -> Result<u32, String> {
    let number: u32 = value.parse().map_err(|_| format!("{key}={value} is not a number"))?;
    if number < least {
        return Err(format!("{key}={number}: expected at least {least}"));
    }
    Ok(number)
}

/// One to three numbers, missing ones being 1; the macro leaves a comma after the last.
fn dimensions(key: &str, value: &str) -> Result<[u32; 3], String> {
    let mut found = [1; 3];
    let given: Vec<&str> = value.trim_end_matches(',').split(',').collect();
    if given.len() > 3 {
        return Err(format!("{key}={value}: expected one to three numbers"));
    }
    for (slot, text) in found.iter_mut().zip(given) {
        *slot = number(key, text, 1)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = "@kernel name=attend threads=384, min_blocks=1 cluster=2,1,1, param_align=64 barriers=3 wgmma=12 tensor_core=1 f64=0";
        let annotation = parse(text).unwrap().unwrap();
        assert_eq!(
            annotation,
            Annotation {
                name: "attend".into(),
                threads: [384, 1, 1],
                min_blocks: Some(1),
                cluster: Some([2, 1, 1]),
                param_align: Some(64),
                barriers: Some(3),
                wgmma: Some(12),
                tensor_core: true,
                f64: false,
            }
        );
    }

    #[test]
    fn other_comments_are_not_annotations() {
        assert_eq!(parse(" .globl k"), None);
    }

    #[test]
    fn mistakes_name_the_kernel_and_the_key() {
        for (text, wanted) in [
            ("@kernel name=k threads=0", "threads=0: expected at least 1"),
            ("@kernel name=k threads=32,64,1", "1 to 1024 threads"),
            ("@kernel name=k threads=1,1,128", "64 of them in z"),
            ("@kernel name=k", "1 to 1024 threads"),
            ("@kernel name=k threads=32 cluster=32", "1 to 16 blocks"),
            ("@kernel name=k threads=32 param_align=48", "power of two"),
            ("@kernel name=k threads=32 colour=3", "`colour`"),
            ("@kernel name=k threads=32 wgmma", "`wgmma`"),
            ("@kernel name=k threads=32 threads=32", "twice"),
        ] {
            let (name, message) = parse(text).unwrap().unwrap_err();
            assert_eq!(name, "k");
            assert!(message.contains(wanted), "{message} should say {wanted}");
        }
    }
}
