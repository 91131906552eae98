//! Ways to call, limits, and what is refused.

use host::compare::same_bits;
use host::ops::{attention, attention_backward};
use host::{AnyTensor, DType, Device, Error, Tier, f16};

use super::{causal, grad_of, run};
use crate::support::{Case, devices, shape};

/// A context is the same call, on another stream too.
#[test]
fn contexts() {
    for device in devices() {
        let case = Case::<f16>::new(14, shape(1, (2, 2), (20, 20), 16)).with(causal());
        let expected = run(&case, device, &grad_of(&case)).unwrap();
        let [q, k, v] = case.tensors(device);
        let grad = case.upload(device, &grad_of(&case), 20, 2, 16);
        let context = attention(&q, &k, &v).causal().run_with_context().unwrap();
        assert_eq!(context.attention().lse.shape(), [1, 2, 20]);
        device.synchronize().unwrap();
        let stream = device.create_stream().unwrap();
        let found = context.call(&grad).on(&stream).run().unwrap();
        device.synchronize_stream(&stream).unwrap();
        same_bits(&found.dq.typed::<f16>("dq").unwrap().to_vec().unwrap(), &expected.dq).unwrap();
        same_bits(&found.dv.typed::<f16>("dv").unwrap().to_vec().unwrap(), &expected.dv).unwrap();
    }
}

/// More planes than the second grid dimension takes.
#[test]
fn more_than_65535_heads() {
    for device in devices().iter().filter(|device| !device.is_emulator()) {
        let case = Case::<f16>::new(30, shape(70_000, (1, 1), (1, 1), 8));
        let grad = grad_of(&case);
        same_bits(&run(&case, device, &grad).unwrap().dv, &grad).unwrap();
    }
}

/// What belongs to another call is refused by name, before anything is written.
#[test]
fn bad_input() {
    let names = |error: Error| match error {
        Error::Shape { argument, .. }
        | Error::Dtype { argument, .. }
        | Error::Layout { argument, .. }
        | Error::Range { argument, .. }
        | Error::WrongDevice { argument, .. } => argument,
        other => panic!("{other}"),
    };
    for device in devices() {
        let tensor = |dtype, shape: &[u64]| AnyTensor::zeros(device, dtype, shape).unwrap();
        let x = |shape: &[u64]| tensor(DType::F16, shape);
        let f = |shape: &[u64]| tensor(DType::F32, shape);
        let (good, lse) = (x(&[1, 4, 2, 16]), f(&[1, 2, 4]));
        let other = Device::emulator().unwrap();
        let far = AnyTensor::zeros(&other, DType::F32, &[1, 2, 4]).unwrap();
        let call = |grad: &AnyTensor, out: &AnyTensor, lse: &AnyTensor| {
            names(
                attention_backward(grad, &good, &good, &good, out, lse)
                    .run()
                    .unwrap_err(),
            )
        };
        assert_eq!(call(&x(&[1, 4, 2, 24]), &good, &lse), "grad_out");
        assert_eq!(call(&f(&[1, 4, 2, 16]), &good, &lse), "grad_out");
        assert_eq!(call(&good, &x(&[1, 5, 2, 16]), &lse), "out");
        assert_eq!(call(&good, &f(&[1, 4, 2, 16]), &lse), "out");
        assert_eq!(call(&good, &good, &f(&[1, 4, 2])), "lse");
        assert_eq!(call(&good, &good, &x(&[1, 2, 4])), "lse");
        assert_eq!(call(&good, &good, &far), "lse");
        let odd = x(&[1, 4, 2, 18]).slice(3, 0..16).unwrap();
        assert_eq!(call(&odd, &good, &lse), "grad_out");
        assert_eq!(call(&good, &good, &f(&[1, 2, 8]).slice(2, 0..4).unwrap()), "lse");

        let base = || attention_backward(&good, &good, &good, &good, &good, &lse);
        let (a, b, c) = (x(&[1, 4, 2, 16]), x(&[1, 4, 2, 16]), x(&[1, 4, 2, 16]));
        let refused =
            |dq: &AnyTensor, dk: &AnyTensor, dv: &AnyTensor| names(base().gradients(dq, dk, dv).run().unwrap_err());
        assert_eq!(refused(&a, &a, &c), "dk");
        assert_eq!(refused(&a, &b, &b), "dv");
        assert_eq!(refused(&good, &b, &c), "dq");
        assert_eq!(refused(&a, &x(&[1, 4, 2, 8]), &c), "dk");
        let shifted = x(&[130]).slice(0, 2..130).unwrap().reshape(&[1, 4, 2, 16]).unwrap();
        assert_eq!(refused(&a, &b, &shifted), "dv");
        assert_eq!(refused(&a, &b, &f(&[1, 4, 2, 16])), "dv");
        assert_eq!(names(base().work(&f(&[7])).run().unwrap_err()), "work");
        assert_eq!(names(base().work(&x(&[8])).run().unwrap_err()), "work");
        assert_eq!(names(base().softcap(-1.0).run().unwrap_err()), "softcap");
        // Δ, a float a row; where one kernel computes all gradients also statistics and dQ of a tile of rows a head, a
        // counter each and one of tiles.
        let needed = match device.tier() {
            Tier::Sm75 => 8,
            Tier::Sm80 => 8 + 2 * 32 * (2 + 16) + 2 + 1,
            Tier::Sm90a => 8 + 2 * 128 * (2 + 16) + 2 + 1,
        };
        assert_eq!(base().work_elements(), needed);
        assert_eq!(names(base().work(&f(&[needed - 1])).run().unwrap_err()), "work");
        let aside = f(&[needed + 1]).slice(0, 1..needed + 1).unwrap();
        assert_eq!(names(base().work(&aside).run().unwrap_err()), "work");
        base().work(&f(&[needed])).gradients(&a, &b, &c).run().unwrap();
        if device.tier() == Tier::Sm75 {
            let y = tensor(DType::BF16, &[1, 4, 2, 16]);
            let error = attention_backward(&y, &y, &y, &y, &y, &lse).run().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Unsupported {
                        tier: Some(Tier::Sm75),
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
