//! The parser accepts what compilers write, prints what it parsed, and refuses the rest with a place.

use emulator::Module;

#[test]
fn errors_name_line_and_column() {
    let error =
        Module::parse(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n  add.s32 %r1 %r2;\n}")
            .err()
            .unwrap();
    assert_eq!((error.position.line, error.position.column), (6, 15));
    assert!(error.to_string().contains("expected ',' or ';'"), "{error}");
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    let head = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() {";
    for open in ["{", "mov.b32 %r1, ((", "mov.b32 {"] {
        let source = format!("{head}{}", open.repeat(100_000));
        assert!(Module::parse(&source).is_err());
    }
    let minus = format!("{head} mov.b32 %r1, {}1;", "-".repeat(100_000));
    assert!(Module::parse(&minus).is_err());
}

#[test]
fn what_is_not_modelled_is_refused_by_name_and_line_when_reached() {
    let source = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry good() { ret; }\n.visible .entry bad()\n{\n .reg .b32 %r<2>;\n add.weird.s32 %r1, %r1, 1;\n ret;\n}";
    let module = Module::parse(source).unwrap();
    assert!(module.entry("good").is_ok());
    let error = module.entry("bad").unwrap_err().to_string();
    assert!(
        error.contains("8:2") && error.contains("add.weird.s32") && error.contains(".weird"),
        "{error}"
    );
}
