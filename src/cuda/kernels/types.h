// SPDX-License-Identifier: MIT
// Element types and what kernels do with single numbers. NVRTC has no toolkit headers here, so the
// 16-bit types and the instructions are ours.
#ifndef VECINA_CUDA_KERNELS_TYPES_H_
#define VECINA_CUDA_KERNELS_TYPES_H_

namespace vecina::cuda {

#define VECINA_DEVICE __device__ __forceinline__

// Values of vecina_dtype.
inline constexpr int kF32 = 0, kF64 = 1, kF16 = 2, kBf16 = 3, kE4m3 = 6;

struct F16 {
  unsigned short bits;
};
struct Bf16 {
  unsigned short bits;
};

// Element: as it lies in memory. Real: in which it is summed; also lse and bias.
template <int dtype>
struct Types;
template <>
struct Types<kF32> {
  using Element = float;
  using Real = float;
};
template <>
struct Types<kF64> {
  using Element = double;
  using Real = double;
};
template <>
struct Types<kF16> {
  using Element = F16;
  using Real = float;
};
template <>
struct Types<kBf16> {
  using Element = Bf16;
  using Real = float;
};

VECINA_DEVICE float infinity() { return __int_as_float(0x7f800000); }

VECINA_DEVICE float real(F16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
VECINA_DEVICE float real(Bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

// Two reals as the two halves of a word, `low` first in memory; rounded to nearest even.
VECINA_DEVICE unsigned pack(F16, float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
VECINA_DEVICE unsigned pack(Bf16, float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

VECINA_DEVICE float unpack_low(Bf16, unsigned word) { return __uint_as_float(word << 16); }
VECINA_DEVICE float unpack_high(Bf16, unsigned word) { return __uint_as_float(word & 0xffff0000u); }
VECINA_DEVICE float unpack_low(F16, unsigned word) {
  return real(F16{static_cast<unsigned short>(word)});
}
VECINA_DEVICE float unpack_high(F16, unsigned word) {
  return real(F16{static_cast<unsigned short>(word >> 16)});
}

VECINA_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
VECINA_DEVICE double power_of_two(double x) { return exp2(x); }
// Of 0 or a normal number.
VECINA_DEVICE float logarithm_of_two(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
VECINA_DEVICE double logarithm_of_two(double x) { return log2(x); }
// Of a normal number, to the last bit (f64: rounded).
VECINA_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
VECINA_DEVICE double reciprocal(double x) { return 1.0 / x; }
inline constexpr double kLn2 = 0.693147180559945309417;

// A NaN counts for nothing.
VECINA_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
VECINA_DEVICE double larger(double a, double b) { return fmax(a, b); }
VECINA_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
VECINA_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// kSize neighbouring elements with one load or store of at most 16 bytes, aligned to its size.
// Not through the read-only path: it may move above the wait for the kernel before.
template <int kBytes>
VECINA_DEVICE void load_words(const char* from, unsigned* words) {
  if constexpr (kBytes == 16) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    words[0] = all.x;
    words[1] = all.y;
    words[2] = all.z;
    words[3] = all.w;
  } else if constexpr (kBytes == 8) {
    const uint2 all = *reinterpret_cast<const uint2*>(from);
    words[0] = all.x;
    words[1] = all.y;
  } else {
    static_assert(kBytes == 4);
    words[0] = *reinterpret_cast<const unsigned*>(from);
  }
}
template <int kBytes>
VECINA_DEVICE void store_words(char* to, const unsigned* words) {
  if constexpr (kBytes == 16) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else if constexpr (kBytes == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
    static_assert(kBytes == 4);
    *reinterpret_cast<unsigned*>(to) = words[0];
  }
}

template <class Element, int kSize, class Real>
VECINA_DEVICE void load(const char* from, Real* to) {
  constexpr int kBytes = kSize * static_cast<int>(sizeof(Element));
  if constexpr (kBytes == 2) {
    to[0] = real(Element{*reinterpret_cast<const unsigned short*>(from)});
  } else {
    unsigned words[kBytes / 4];
    load_words<kBytes>(from, words);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if constexpr (sizeof(Element) == 8) {
        to[i] =
            __hiloint2double(static_cast<int>(words[2 * i + 1]), static_cast<int>(words[2 * i]));
      } else if constexpr (sizeof(Element) == 4) {
        to[i] = __uint_as_float(words[i]);
      } else {
        to[i] =
            i % 2 == 0 ? unpack_low(Element{}, words[i / 2]) : unpack_high(Element{}, words[i / 2]);
      }
    }
  }
}

template <class Element, int kSize, class Real>
VECINA_DEVICE void store(const Real* from, char* to) {
  constexpr int kBytes = kSize * static_cast<int>(sizeof(Element));
  if constexpr (kBytes == 2) {
    *reinterpret_cast<unsigned short*>(to) =
        static_cast<unsigned short>(pack(Element{}, from[0], 0.0f));
  } else {
    unsigned words[kBytes / 4];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if constexpr (sizeof(Element) == 8) {
        words[2 * i] = static_cast<unsigned>(__double2loint(from[i]));
        words[2 * i + 1] = static_cast<unsigned>(__double2hiint(from[i]));
      } else if constexpr (sizeof(Element) == 4) {
        words[i] = __float_as_uint(from[i]);
      } else if (i % 2 == 0) {
        words[i / 2] = pack(Element{}, from[i], from[i + 1]);
      }
    }
    store_words<kBytes>(to, words);
  }
}

// The same in loads or stores of kPiece elements, for addresses aligned to no more. What a thread
// holds, and so the order of sums, does not depend on the alignment.
template <class Element, int kSize, int kPiece, class Real>
VECINA_DEVICE void load_pieces(const char* from, Real* to) {
#pragma unroll
  for (int i = 0; i < kSize; i += kPiece) {
    load<Element, kPiece>(from + i * static_cast<int>(sizeof(Element)), to + i);
  }
}
template <class Element, int kSize, int kPiece, class Real>
VECINA_DEVICE void store_pieces(const Real* from, char* to) {
#pragma unroll
  for (int i = 0; i < kSize; i += kPiece) {
    store<Element, kPiece>(from + i, to + i * static_cast<int>(sizeof(Element)));
  }
}

// The loads above are issued before anything below runs: without it they are moved down to their
// first uses, and one waits for memory after the other.
VECINA_DEVICE void keep_loads_above() { __threadfence_block(); }

// With programmatic launch a kernel starts while the one before it ends: nothing of global memory
// may be touched before wait_for_previous().
VECINA_DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// From here on the next kernel may start, and wait.
VECINA_DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace vecina::cuda
#endif  // VECINA_CUDA_KERNELS_TYPES_H_
