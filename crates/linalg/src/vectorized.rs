//! Plain loops at the width of the machine's vectors.

/// Compiles a function for any processor and again for AVX2 and AVX-512, and chooses at run time. Each gives the same bits:
/// nothing is fused that is not written so.
#[macro_export]
macro_rules! vectorized {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn anywhere($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($argument: $type),*) $(-> $result)? {
                    anywhere($($argument),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn widest($($argument: $type),*) $(-> $result)? {
                    anywhere($($argument),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has all that `widest` asks for.
                    return unsafe { widest($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, all that `wide` asks for.
                    return unsafe { wide($($argument),*) };
                }
            }
            anywhere($($argument),*)
        }
    };
}
