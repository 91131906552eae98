//! Row by row: reductions, norms, softmax, in each of the widths that have kernels of their own (1024, 4096, 8192 and 32768
//! columns are the limits; on sm_90a clusters take longer rows, up to some 110,000 of f32 and twice as many of 16 bits).

use host::ops::{ReduceAxis, ReduceKind, layer_norm, log_softmax, reduce, rms_norm, softmax};

use super::{Case, FLOATS, case};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = reductions();
    cases.extend(norms());
    cases.extend(softmaxes());
    cases
}

const KINDS: [ReduceKind; 6] = [
    ReduceKind::Sum,
    ReduceKind::Mean,
    ReduceKind::SumOfSquares,
    ReduceKind::Max,
    ReduceKind::Min,
    ReduceKind::Argmax,
];

fn reductions() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for kind in KINDS {
            cases.push(case(
                "reduce",
                format!("{kind:?} of rows of 100 and of 4500 {dtype}"),
                move |bed| {
                    Ok(vec![
                        reduce(&bed.floats(dtype, &[9, 100])?, kind, ReduceAxis::Last)?,
                        reduce(&bed.floats(dtype, &[2, 4500])?, kind, ReduceAxis::Last)?,
                    ])
                },
            ));
        }
    }
    for kind in KINDS {
        cases.push(case("reduce", format!("{kind:?} of 33000 f16"), move |bed| {
            let x = bed.floats(host::DType::F16, &[33_000])?;
            Ok(vec![reduce(&x, kind, ReduceAxis::All)?])
        }));
    }
    cases
}

fn norms() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        // Whole vectors and others, in each of the widths.
        for columns in [100, 96, 1504, 5000, 9000, 9001, 33_000, 70_000, 70_001] {
            cases.push(case(
                "norm",
                format!("norms of rows of {columns} {dtype} with a residual"),
                move |bed| {
                    let (x, r, w) = (
                        bed.floats(dtype, &[2, columns])?,
                        bed.floats(dtype, &[2, columns])?,
                        bed.floats(dtype, &[columns])?,
                    );
                    let root = rms_norm(&x).residual(&r).weight(&w).run()?;
                    let layer = layer_norm(&x).residual(&r).run()?;
                    Ok([Some(root.y), root.sum, Some(layer.y), layer.sum]
                        .into_iter()
                        .flatten()
                        .collect())
                },
            ));
        }
        for columns in [
            96, 1504, 1537, 5000, 5001, 9000, 9001, 33_001, 70_000, 70_001, 140_000, 240_001,
        ] {
            cases.push(case(
                "norm",
                format!("LayerNorm of a row of {columns} {dtype}"),
                move |bed| {
                    let x = bed.floats(dtype, &[1, columns])?;
                    let (w, b) = (bed.floats(dtype, &[columns])?, bed.floats(dtype, &[columns])?);
                    Ok(vec![layer_norm(&x).weight(&w).bias(&b).run()?.y])
                },
            ));
        }
        // More rows than clusters that take one after the other.
        if dtype.size() == 2 {
            cases.push(case(
                "norm",
                format!("LayerNorm of 15 rows of 65544 {dtype}"),
                move |bed| Ok(vec![layer_norm(&bed.floats(dtype, &[15, 65_544])?).run()?.y]),
            ));
        }
        for (rows, columns) in [
            (70, 24),
            (3, 1500),
            (33, 1504),
            (2, 8200),
            (2, 8201),
            (2, 9304),
            (2, 9305),
            (5, 20_000),
            (1, 37_000),
        ] {
            cases.push(case(
                "norm",
                format!("gradients of {rows} rows of {columns} {dtype}"),
                move |bed| {
                    let (x, dy) = (
                        bed.floats(dtype, &[rows, columns])?,
                        bed.floats(dtype, &[rows, columns])?,
                    );
                    let (w, b) = (bed.floats(dtype, &[columns])?, bed.floats(dtype, &[columns])?);
                    let gradients = layer_norm(&x).weight(&w).bias(&b).backward(&dy, Some(&dy))?;
                    Ok([Some(gradients.dx), gradients.dweight, gradients.dbias]
                        .into_iter()
                        .flatten()
                        .collect())
                },
            ));
        }
    }
    cases
}

fn softmaxes() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        cases.push(case("softmax", format!("causal, 1×2×20×20 {dtype}"), move |bed| {
            let x = bed.floats(dtype, &[1, 2, 20, 20])?;
            Ok(vec![softmax(&x).causal().scale(0.125).run()?])
        }));
        cases.push(case("softmax", format!("masked rows of 50 {dtype}"), move |bed| {
            let (x, mask) = (bed.floats(dtype, &[6, 50])?, bed.floats(dtype, &[6, 50])?);
            Ok(vec![softmax(&x).mask(&mask).run()?])
        }));
        // Clusters take no masks.
        for columns in [5000, 9001, 33_000] {
            cases.push(case(
                "softmax",
                format!("a masked row of {columns} {dtype}"),
                move |bed| {
                    let (x, mask) = (bed.floats(dtype, &[1, columns])?, bed.floats(dtype, &[columns])?);
                    let op = softmax(&x).mask(&mask);
                    Ok(vec![op.run()?, op.backward(&x)?])
                },
            ));
        }
        for columns in [1025, 5000, 8193, 33_000] {
            cases.push(case(
                "softmax",
                format!("logarithm, a row of {columns} {dtype}"),
                move |bed| Ok(vec![log_softmax(&bed.floats(dtype, &[1, columns])?).run()?]),
            ));
        }
        for (rows, columns) in [(4, 333), (2, 1500), (1, 5000), (1, 8200)] {
            cases.push(case(
                "softmax",
                format!("gradient of {rows} rows of {columns} {dtype}"),
                move |bed| {
                    let dy = bed.floats(dtype, &[rows, columns])?;
                    Ok(vec![softmax(&bed.floats(dtype, &[rows, columns])?).backward(&dy)?])
                },
            ));
        }
    }
    cases
}
