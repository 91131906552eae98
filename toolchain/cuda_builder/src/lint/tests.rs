//! For each rule, PTX that breaks it, and the nearest PTX that does not.

use super::check;
use crate::{Arch, image};

/// The image of a kernel `k` with this annotation, module-scope declarations and body.
fn image(annotation: &str, globals: &str, body: &str) -> image::Image {
    let text = format!(
        "// @kernel name=k threads=128 {annotation}\n.version 8.3\n.target sm_90a\n{globals}.visible .entry k(\n\
         .param .align 8 .b8 k_param_0[16]\n)\n{{\n{body}\nret;\n}}\n"
    );
    image::split("u", Arch::Sm90a, &text).unwrap().remove(0)
}

/// The rules broken, and the lines of the image they name.
fn broken(annotation: &str, globals: &str, body: &str) -> Vec<(&'static str, String)> {
    let image = image(annotation, globals, body);
    let line = |number: usize| {
        image
            .text
            .lines()
            .nth(number - 1)
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let failures = check(&image).into_iter();
    failures.map(|failure| (failure.rule, line(failure.line))).collect()
}

const MMA: &str = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1, %f2, %f3, %f4}, %rd1, %rd2, p, 1, 1, 0, 0;";
const MMA_A: &str =
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1, %f2, %f3, %f4}, {%a1, %a2, %a3, %a4}, %rd2, p, 1, 1, 0;";
const FENCE: &str = "wgmma.fence.sync.aligned;";
const COMMIT: &str = "wgmma.commit_group.sync.aligned;";
const WAIT: &str = "wgmma.wait_group.sync.aligned 0;";

#[test]
fn a_kernel_that_breaks_nothing_passes() {
    let body = [
        FENCE,
        MMA,
        MMA,
        COMMIT,
        WAIT,
        "st.global.b32 [%rd4], %f1;",
        "ld.shared.b32 %r1, [%r2];",
    ]
    .join("\n");
    assert_eq!(broken("barriers=0 wgmma=2", "", &body), []);
}

#[test]
fn local_memory_is_forbidden_beside_tensor_cores() {
    let body = ".local .align 8 .b8 __local_depot0[16];\nst.local.b32 [%rd1], %r1;";
    assert_eq!(broken("", "", body), []);
    let found = broken("tensor_core=1", "", body);
    assert_eq!(
        found.iter().map(|(rule, _)| *rule).collect::<Vec<_>>(),
        ["local-memory", "local-memory"]
    );
    assert_eq!(found[1].1, "st.local.b32 [%rd1], %r1;");
    let implied = format!("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {{%f1}}, {{%a}}, {{%b}}, {{%c}};\n{body}");
    assert_eq!(broken("", "", &implied).len(), 2);
}

#[test]
fn panics_and_calls_are_told_apart() {
    let panic = ".extern .func _ZN4core9panicking18panic_bounds_check17h0E\n(\n.param .b64 a\n)\n;\n";
    let call = "call.uni _ZN4core9panicking18panic_bounds_check17h0E, (a);";
    assert_eq!(
        broken("", panic, &format!("{{\n{call}\n}}")),
        [("panic", "call.uni function_0, (a);".to_string())]
    );
    let helper = ".func (.param .b32 r) helper(.param .b32 a)\n{\nret;\n}\n";
    assert_eq!(broken("", helper, "call.uni (r), helper, (a);")[0].0, "call");
    assert_eq!(broken("", "", "call.uni (r), %rd1, (a), prototype_0;")[0].0, "call");
    let address = broken("", helper, "mov.b64 %rd1, helper;");
    assert_eq!(address.len(), 1);
    assert_eq!(address[0].0, "call");
}

#[test]
fn counts_must_be_those_declared() {
    let twice = "bar.sync 0;\nbarrier.sync.aligned 1, 64;\nbar.warp.sync 1;\nbarrier.cluster.arrive.aligned;";
    assert_eq!(broken("barriers=2", "", twice), []);
    assert_eq!(
        broken("barriers=1", "", twice),
        [("barriers", "barrier.sync.aligned 1, 64;".to_string())]
    );
    assert_eq!(broken("barriers=3", "", twice)[0].0, "barriers");
    let body = [FENCE, MMA, COMMIT, WAIT].join("\n");
    assert_eq!(broken("wgmma=4", "", &body)[0].0, "wgmma-count");
}

#[test]
fn accumulators_are_not_touched_in_flight() {
    for touch in [
        "mov.b32 %r9, %f2;",
        "mov.b32 %f2, %r9;",
        "st.shared.b32 [%r1], %f4;",
        "@%p1 add.f32 %f3, %f3, %f9;",
    ] {
        let body = [FENCE, MMA, COMMIT, touch, WAIT].join("\n");
        assert_eq!(broken("", "", &body), [("wgmma-in-flight", touch.to_string())]);
        let after = [FENCE, MMA, COMMIT, WAIT, touch].join("\n");
        assert_eq!(broken("", "", &after), []);
    }
}

#[test]
fn a_wait_that_leaves_the_newest_group_running_frees_the_older_ones() {
    let second = MMA.replace("%f", "%g");
    let waits = |read: &str| {
        [
            FENCE,
            MMA,
            COMMIT,
            &second,
            COMMIT,
            "wgmma.wait_group.sync.aligned 1;",
            read,
            WAIT,
        ]
        .join("\n")
    };
    assert_eq!(broken("", "", &waits("mov.b32 %r9, %f1;")), []);
    assert_eq!(broken("", "", &waits("mov.b32 %r9, %g1;"))[0].0, "wgmma-in-flight");
}

#[test]
fn a_operands_are_not_overwritten_in_flight() {
    let with = |between: &str| [FENCE, MMA_A, COMMIT, between, WAIT].join("\n");
    assert_eq!(broken("", "", &with("st.shared.b32 [%r1], %a2;")), []);
    let write = "cvt.rn.f16x2.f32 %a2, %f7, %f8;";
    assert_eq!(broken("", "", &with(write)), [("wgmma-in-flight", write.to_string())]);
}

#[test]
fn nothing_is_written_between_fence_and_multiplication() {
    let late = "mov.b32 %f1, 0;";
    assert_eq!(
        broken("", "", &[FENCE, late, MMA, COMMIT, WAIT].join("\n")),
        [("wgmma-fence", late.to_string())]
    );
    assert_eq!(broken("", "", &[late, FENCE, MMA, COMMIT, WAIT].join("\n")), []);
    let address = "add.s64 %rd1, %rd1, 32;";
    assert_eq!(broken("", "", &[FENCE, address, MMA, COMMIT, WAIT].join("\n")), []);
}

#[test]
fn code_after_a_jump_does_not_inherit_what_is_in_flight() {
    let body = [
        FENCE,
        MMA,
        COMMIT,
        "bra.uni $L1;",
        "$L2:",
        "mov.b32 %r1, %f1;",
        "$L1:",
        WAIT,
    ]
    .join("\n");
    assert_eq!(broken("", "", &body), []);
}

#[test]
fn shared_memory_is_not_accessed_generically() {
    let pool = ".extern .shared .align 16 .b8 pool[];\n";
    let generic = "ld.b32 %r1, [%rd3+4];";
    let body = format!("mov.b32 %r1, pool;\ncvta.shared.u64 %rd2, %rd1;\nadd.s64 %rd3, %rd2, %rd9;\n{generic}");
    assert_eq!(broken("", pool, &body), [("generic-shared", generic.to_string())]);
    assert_eq!(broken("", pool, &body.replace("ld.b32", "ld.shared.b32")), []);
    assert_eq!(broken("", pool, &body.replace("%rd3+4", "%rd9")), []);
    assert_eq!(
        broken("", pool, "mov.b64 %rd1, pool;\natom.add.u32 %r1, [%rd1], 1;")[0].0,
        "generic-shared"
    );
}

#[test]
fn assembly_names_only_what_is_declared() {
    let body = ".reg .b32 lo;\n.shared .align 4 .b8 mine[4];\nmov.u32 %r1, mine;\nmov.u32 %r2, lo;\nmov.u32 %r3, %tid.x;\n\
                mov.b64 %rd1, k_param_0;\nld.param.b64 %rd2, [k_param_0+8];\nmov.b32 %f1, 0f3F800000;";
    assert_eq!(broken("", "", body), []);
    let lost = "mov.u32 %r1, dynamic_shared;";
    assert_eq!(broken("", "", lost), [("undeclared", lost.to_string())]);
    assert_eq!(broken("", "", "ld.shared.b32 %r1, [pool+4];")[0].0, "undeclared");
}

#[test]
fn double_precision_must_be_declared() {
    let body = ".reg .f64 %fd<2>;\ncvt.f64.f32 %fd1, %f1;";
    assert_eq!(broken("", "", body), [("f64", "cvt.f64.f32 %fd1, %f1;".to_string())]);
    assert_eq!(broken("f64=1", "", body), []);
}

#[test]
fn bounds_must_stand_on_the_entry() {
    let text = "// @kernel name=k threads=64\n.version 8.3\n.target sm_90a\n.visible .entry k()\n{\nret;\n}\n";
    let mut image = image::split("u", Arch::Sm90a, text).unwrap().remove(0);
    assert_eq!(check(&image), []);
    image.raw = image.raw.replace(".reqntid 64, 1, 1\n", "");
    assert_eq!(check(&image)[0].rule, "bounds");
}

#[test]
fn parameters_must_fit_the_ptx_version() {
    let text = |version: &str, bytes: u32| {
        format!(
            "// @kernel name=k threads=64\n.version {version}\n.target sm_90a\n.visible .entry k(\n\
             .param .align 8 .b8 k_param_0[{bytes}]\n)\n{{\nret;\n}}\n"
        )
    };
    for (version, bytes, fits) in [
        ("7.4", 4096, true),
        ("7.4", 4104, false),
        ("8.3", 4104, true),
        ("8.3", 40000, false),
    ] {
        let image = image::split("u", Arch::Sm90a, &text(version, bytes)).unwrap().remove(0);
        assert_eq!(check(&image).is_empty(), fits, "PTX {version}, {bytes} bytes");
    }
}

#[test]
fn many_findings_of_a_rule_are_counted() {
    let body = "cvt.f64.f32 %fd1, %f1;\n".repeat(10);
    let failures = check(&image("", "", &body));
    assert_eq!(failures.len(), 4);
    assert!(failures[3].message.ends_with("(and 6 more)"), "{}", failures[3]);
}
