/* SPDX-License-Identifier: MIT
 *
 * Vecina: neighborhood attention. The C interface, complete; everything else is built on it.
 *
 * New fields are appended to the structs that begin with struct_size; vecina_tensor never changes.
 * Zero is a valid default for every field that the _init functions do not set. No function throws,
 * prints or exits. All strings are UTF-8.
 *
 * Layouts (heads last, the last dimension contiguous):
 *   query             [batch, extents..., heads,    head_dim]
 *   key               [batch, extents..., heads_kv, head_dim]
 *   value             [batch, extents..., heads_kv, head_dim_value]
 *   output            [batch, query extents..., heads, head_dim_value]
 *   lse               [batch, query extents..., heads]
 *   additional_key    [batch, additional_tokens, heads_kv, head_dim]
 *   additional_value  [batch, additional_tokens, heads_kv, head_dim_value]
 *   bias              [heads, 2 * kernel_size - 1, ...], one axis for each rank (relative position)
 *   head_scale        [heads]
 *   weights           [batch, query extents..., heads, slots], see vecina_split_args
 * Packed lengths: [1, total tokens, ...] instead of [batch, extents...], and the additional tensors
 * have one row for each sample instead of each batch.
 * With output_stride s the query tensor keeps the full extents (only every s-th token is read);
 * output and lse have ceil(extent / s) tokens along that axis.
 */
#ifndef VECINA_VECINA_H_
#define VECINA_VECINA_H_
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define VECINA_API __declspec(dllexport)
#else
#define VECINA_API __attribute__((visibility("default")))
#endif
#ifdef __cplusplus
extern "C" {
#endif

typedef enum vecina_status {
  VECINA_OK = 0,
  VECINA_INVALID_ARGUMENT = 1, /* the caller's mistake; nothing was written or enqueued */
  VECINA_UNSUPPORTED = 2, /* valid, but no usable backend takes it; the message says why for each */
  VECINA_OUT_OF_MEMORY = 3,
  VECINA_DEVICE_ERROR = 4, /* driver, compiler or device failed; the message holds its words */
  VECINA_INTERNAL = 5      /* our bug */
} vecina_status;

/* The sentence for the last status other than VECINA_OK on this thread; valid until this thread's
 * next failing call. */
VECINA_API const char* vecina_last_error(void);
/* The status of this thread's last call of a function that returns a status or a size. It says
 * whether the latter failed: one that writes text has then written the sentence instead,
 * vecina_workspace_bytes and vecina_plan_workspace_bytes returned 0. */
VECINA_API vecina_status vecina_last_status(void);
VECINA_API const char* vecina_version(void); /* "0.1.0" */

typedef enum vecina_dtype {
  VECINA_F32 = 0,
  VECINA_F64 = 1,
  VECINA_F16 = 2,
  VECINA_BF16 = 3,
  VECINA_I32 = 4,
  VECINA_I64 = 5,
  /* Experimental. 8 bits: sign, 4 of exponent, 3 of mantissa; up to 448, no infinities, one NaN
   * (Micikevicius et al., "FP8 formats for deep learning", arXiv:2209.05433). Of query and key
   * alone, see query_key_dtype. */
  VECINA_E4M3 = 6
} vecina_dtype;
typedef enum vecina_device {
  VECINA_CPU = 0,
  VECINA_CUDA = 1,
  VECINA_VULKAN = 2,
  VECINA_METAL = 3
} vecina_device;

/* A view; owns nothing. data == NULL means "not given". Strides are in elements; the last dimension
 * has stride 1; a dimension of size 1 may have any stride; inputs may have stride 0 in other
 * dimensions, outputs may not overlap themselves. */
typedef struct vecina_tensor {
  void* data;          /* pointer, or a buffer's handle where a device has those (Metal, Vulkan) */
  int64_t byte_offset; /* added to data; 0 in the usual case */
  int64_t shape[6];
  int64_t strides[6];
  int32_t ndim;
  int32_t dtype;        /* vecina_dtype */
  int32_t device;       /* vecina_device */
  int32_t device_index; /* 0 for the CPU */
} vecina_tensor;

typedef enum vecina_kind {
  VECINA_NEIGHBORHOOD = 0, /* each query sees the window around it */
  VECINA_ATTENTION = 1     /* rank 1, each query sees every key; causal: key j is seen iff j <= i */
} vecina_kind;

typedef enum vecina_lengths {
  VECINA_LENGTHS_EQUAL = 0,  /* every sample fills the extents */
  VECINA_LENGTHS_PADDED = 1, /* sample b uses lengths[b, :] of each extent; output beyond is zero */
  VECINA_LENGTHS_PACKED = 2  /* tensors are [1, total tokens, heads, ...] for any rank: samples one
                                after another, each row-major; lengths[s, :] are the extents of
                                sample s; extent = the largest of any sample */
} vecina_lengths;

typedef enum vecina_flags {
  VECINA_ALLOW_TF32 = 1,               /* f32 products may round their inputs to TF32 */
  VECINA_NONDETERMINISTIC_BACKWARD = 2 /* a faster backward whose bits may differ from run to run */
} vecina_flags;

/* What is computed. Holds no pointer: it hashes, compares and prints by value. Axes are ordered
 * outermost first. */
typedef struct vecina_problem {
  size_t struct_size;
  int32_t kind; /* vecina_kind */
  int32_t rank; /* 1, 2 or 3 */
  int64_t batch;
  int32_t heads, heads_kv;          /* heads % heads_kv == 0 */
  int32_t head_dim, head_dim_value; /* head_dim_value 0: head_dim */
  int64_t extent[3];                /* tokens along each axis */
  int64_t query_extent[3];          /* VECINA_ATTENTION only; 0: extent */
  int64_t kernel_size[3];   /* dilation * kernel_size <= extent; VECINA_ATTENTION: unused, 0 */
  int64_t stride[3];        /* queries that share a window (GNA), <= kernel_size; init: 1 */
  int64_t output_stride[3]; /* only tokens 0, s, 2s, ... are queries; init: 1. stride and
                               output_stride cannot both exceed 1 on one axis */
  int64_t dilation[3];      /* init: 1 */
  int32_t is_causal[3];
  int32_t dtype; /* of query, key, value, output and their gradients; see query_key_dtype */
  int64_t additional_tokens; /* keys that every query sees besides its window */
  int32_t has_scale;         /* 0: scale is head_dim^-0.5 */
  int32_t has_bias;          /* relative position bias, fp32 (fp64 for VECINA_F64) */
  double scale;    /* multiplies query . key; 0 and below 0 too; |scale| is at most 2.35e38
                      (1.24e308 of VECINA_F64) */
  int32_t lengths; /* vecina_lengths */
  int32_t samples; /* VECINA_LENGTHS_PACKED: how many */
  uint32_t flags;  /* vecina_flags; other bits are VECINA_INVALID_ARGUMENT */
  /* 0 or dtype's: as dtype. VECINA_E4M3, experimental, may change: query, key and additional_key
   * are e4m3, all else as before. Forward only, on GPUs of compute capability 9.0 with dtype f16 or
   * bf16 and a head_dim that is a multiple of 16 (docs/hopper.md); backend "reference" takes any.
   * e4m3 rounds to 4 significant bits: on normal random numbers outputs err by 3 to 4% of their
   * norm, where bf16 errs by 0.3%. */
  int32_t query_key_dtype;
} vecina_problem;

/* struct_size = sizeof(vecina_problem) as the caller compiled it; nothing beyond it is ever
 * written. Sets 1s, f32, zero else. */
VECINA_API void vecina_problem_init(vecina_problem* problem, size_t struct_size, int32_t rank);
VECINA_API vecina_status vecina_problem_check(const vecina_problem* problem);
/* problem->struct_size is set by the caller; a line that needs a field beyond it is
 * VECINA_INVALID_ARGUMENT. */
VECINA_API vecina_status vecina_problem_parse(const char* line, vecina_problem* problem);
/* Writes at most size bytes, always terminated; returns the length that was needed without the
 * terminator. */
VECINA_API size_t vecina_problem_print(const vecina_problem* problem, char* text, size_t size);
/* Keys that query `index` of axis `axis` sees: begin, begin + step, ... (count of them), in tokens.
 */
VECINA_API vecina_status vecina_window(const vecina_problem* problem, int32_t axis, int64_t index,
                                       int64_t* begin, int64_t* step, int64_t* count);

/* A context holds a backend choice, worker threads, CPU scratch (grow-only, one slice a thread) and
 * kernel caches. It may be used from many threads at once. */
typedef struct vecina_context vecina_context;
typedef struct vecina_context_options {
  size_t struct_size;
  const char* backend;   /* NULL: VECINA_BACKEND, else the best; or "reference", "cpu", ... */
  int32_t device_index;  /* where tensors are on the host; otherwise the tensors decide */
  int32_t threads;       /* 0: VECINA_NUM_THREADS, else the cores this process may use */
  const char* cache_dir; /* NULL: VECINA_CACHE_DIR, else the platform's cache folder */
  /* A host's own pool, used instead of ours: must call body(i, user_body) for i in [0, count) and
   * return when all are done. */
  void (*parallel_for)(void* user, int64_t count, void (*body)(int64_t i, void* user_body),
                       void* user_body);
  void* parallel_for_user;
} vecina_context_options;
VECINA_API vecina_status vecina_context_create(const vecina_context_options* options,
                                               vecina_context** context);
VECINA_API void vecina_context_destroy(vecina_context* context);

VECINA_API int32_t vecina_backend_count(void);
VECINA_API const char* vecina_backend_name(int32_t i); /* in order of preference */
/* Why backend `name` cannot run the problem (NULL problem: cannot run at all) here; empty if it
 * can. Same rule as _print. */
VECINA_API size_t vecina_backend_why_not(vecina_context* context, const char* name,
                                         const vecina_problem* problem, char* text, size_t size);

typedef struct vecina_forward_args {
  size_t struct_size;
  vecina_tensor query, key, value;
  vecina_tensor additional_key, additional_value; /* both or neither */
  vecina_tensor bias;
  /* int32 or int64, [samples or batch, rank], where the tensors are. On the CPU: checked. On a
   * device: not checked; a length counts as at most the extent, a packed sample that the tensors
   * have no room for as empty, and a sample smaller than its window gives output 0, lse -inf. */
  vecina_tensor lengths;
  vecina_tensor query_lengths; /* VECINA_ATTENTION with other query lengths; not given: lengths */
  vecina_tensor output;
  vecina_tensor lse;      /* optional; f32 (f64 for f64 problems): log of the sum of exp(logits) */
  void* workspace;        /* device memory, 256-byte aligned; NULL if none is needed */
  size_t workspace_bytes; /* smaller than needed: VECINA_INVALID_ARGUMENT */
  /* Optional, with query_key_dtype VECINA_E4M3: f32 (f64 for f64 problems), multiplies query . key
   * of each head besides scale; of tensors that were divided by a scale of their own before they
   * were stored, the product of both. Finite and above 0, which is checked on the CPU, in examples
   * of plans too. */
  vecina_tensor head_scale;
} vecina_forward_args;

typedef struct vecina_backward_args {
  size_t struct_size;
  vecina_tensor query, key, value, additional_key, additional_value, bias, lengths, query_lengths;
  vecina_tensor output, lse; /* what forward wrote */
  vecina_tensor grad_output;
  vecina_tensor grad_lse; /* optional */
  /* Wanted if given; overwritten, never accumulated. */
  vecina_tensor grad_query, grad_key, grad_value;
  vecina_tensor grad_additional_key, grad_additional_value, grad_bias;
  void* workspace;
  size_t workspace_bytes;
} vecina_backward_args;

/* Everything decided once: checks, backend, kernel, tiles, launch geometry. Immutable, usable from
 * many threads. Made from example arguments: their shapes, strides, dtypes, devices and 16-byte
 * alignment count, not their addresses; running it with a less aligned pointer is
 * VECINA_INVALID_ARGUMENT. A plan keeps its context alive: destroy in any order. */
typedef struct vecina_plan vecina_plan;
VECINA_API vecina_status vecina_plan_forward(vecina_context* context, const vecina_problem* problem,
                                             const vecina_forward_args* example,
                                             vecina_plan** plan);
VECINA_API vecina_status vecina_plan_backward(vecina_context* context,
                                              const vecina_problem* problem,
                                              const vecina_backward_args* example,
                                              vecina_plan** plan);
VECINA_API size_t vecina_plan_workspace_bytes(const vecina_plan* plan);
/* JSON: backend, kernel, tiles, work, why. Same rule as _print. */
VECINA_API size_t vecina_plan_describe(const vecina_plan* plan, char* text, size_t size);
VECINA_API void vecina_plan_destroy(vecina_plan* plan);

/* Enqueues on `queue` (a CUstream for CUDA, ignored by CPU backends, which return when done). Of
 * tensors only data and byte_offset are read: all else, of lengths too, is the example's. A warm
 * run allocates nothing, takes no contended lock and never synchronises. */
VECINA_API vecina_status vecina_run_forward(const vecina_plan* plan,
                                            const vecina_forward_args* args, void* queue);
VECINA_API vecina_status vecina_run_backward(const vecina_plan* plan,
                                             const vecina_backward_args* args, void* queue);

/* Plan from the context's cache, then run. If device workspace is needed (vecina_workspace_bytes:
 * what the problem needs at most, whatever the strides; a plan may need less), it must be in
 * args. */
VECINA_API size_t vecina_workspace_bytes(vecina_context* context, const vecina_problem* problem,
                                         int32_t backward);
VECINA_API vecina_status vecina_forward(vecina_context* context, const vecina_problem* problem,
                                        const vecina_forward_args* args, void* queue);
VECINA_API vecina_status vecina_backward(vecina_context* context, const vecina_problem* problem,
                                         const vecina_backward_args* args, void* queue);

/* output = sum_i w_i outputs[i], w = softmax over i of lses[i]; lse = log sum exp. count >= 2; any
 * common shape. */
VECINA_API vecina_status vecina_merge_attentions(vecina_context* context, int32_t count,
                                                 const vecina_tensor* outputs,
                                                 const vecina_tensor* lses,
                                                 const vecina_tensor* output,
                                                 const vecina_tensor* lse, void* queue);
VECINA_API vecina_status vecina_merge_attentions_backward(
    vecina_context* context, int32_t count, const vecina_tensor* outputs, const vecina_tensor* lses,
    const vecina_tensor* grad_output, const vecina_tensor* grad_lse,
    const vecina_tensor* grad_outputs, const vecina_tensor* grad_lses, void* queue);

/* The split form, for models that change the logits or the weights between the two products.
 *   weights  [batch, query extents..., heads, slots] in the problem's dtype; slots is the product
 * of the kernel_sizes (VECINA_ATTENTION: the keys) + additional_tokens. Slots are row-major over
 * the axes of the window, first key first, then the additional tokens. Causality may leave slots
 * without a key, after the keys of their axis, or with right_aligned before them: -inf after qk, of
 * gradient 0 after av's backward, otherwise not looked at. Lengths must be equal. Each call reads
 * and writes the tensors named for it and ignores the others; shapes and dtypes are those of
 * vecina_forward_args and vecina_backward_args. */
typedef struct vecina_split_args {
  size_t struct_size;
  vecina_tensor query, key, additional_key, bias; /* qk; its backward without bias */
  vecina_tensor value, additional_value;          /* av and its backward */
  vecina_tensor weights;                          /* qk writes; av and its backward read */
  vecina_tensor output;                           /* av writes */
  vecina_tensor grad_weights;                     /* qk's backward reads, av's writes if given */
  vecina_tensor grad_output;                      /* av's backward reads */
  /* Wanted if given; overwritten, never accumulated. */
  vecina_tensor grad_query, grad_key, grad_additional_key, grad_bias; /* qk's backward */
  vecina_tensor grad_value, grad_additional_value;                    /* av's backward */
  int32_t right_aligned; /* 1: empty slots come before the keys of their axis; 0: after */
  int32_t reserved;      /* 0 */
} vecina_split_args;
/* weights = scale * query . key + bias in the window, scale * query . additional_key beyond it.
 * Plans are cached and queues used as in vecina_forward. VECINA_INVALID_ARGUMENT: a tensor is
 * missing or does not fit, and nothing was written. VECINA_UNSUPPORTED: no usable backend has the
 * split form where the tensors are. */
VECINA_API vecina_status vecina_qk(vecina_context* context, const vecina_problem* problem,
                                   const vecina_split_args* args, void* queue);
/* output = sum over the slots with a key of weights * value; the problem's scale and bias do not
 * enter. */
VECINA_API vecina_status vecina_av(vecina_context* context, const vecina_problem* problem,
                                   const vecina_split_args* args, void* queue);
VECINA_API vecina_status vecina_qk_backward(vecina_context* context, const vecina_problem* problem,
                                            const vecina_split_args* args, void* queue);
VECINA_API vecina_status vecina_av_backward(vecina_context* context, const vecina_problem* problem,
                                            const vecina_split_args* args, void* queue);

/* For tools. text is JSON; same rule as _print. what:
 *   "info", "peak" (measures; afterwards plans of the cpu backend describe a predicted_ms)
 *   "kernels list", "kernels clear"        of the disk cache of kernels compiled at run time
 *   "kernels build CAPABILITY [PARTS] LINE"  compiles those of a problem line for a GPU of that
 *                                          compute capability (90: 9.0), which need not be there;
 *                                          0: the device of the context. PARTS: which of forward,
 *                                          backward, split, merge (of two), with commas between;
 *                                          forward,backward without it
 *   "tune COUNT LINE"   measures, on the device of the context, the COUNT ways to compute a problem
 *                       line's forward that are predicted fastest, and variants of the best; keeps
 *                       the fastest on disk, beside the kernels, and later plans of the same
 *                       problem on a device of the same name take it, also those with lengths
 *                       (COUNT to 100; each call measures, so offer a large text at once):
 *                       {"problem", "device", "file", "cuts": [{..., "predicted_ms", "measured_ms",
 *                       "registers", "spill_bytes", "is_planned", "is_kept"}]}
 *   "tune clear"        forgets what was kept: {"folder", "removed"} */
VECINA_API size_t vecina_info(vecina_context* context, const char* what, char* text, size_t size);
/* Runs a plan on given arguments `repeats` times and writes JSON: whose clock, best and median time
 * of a run, their spread, useful FLOP/s. */
VECINA_API size_t vecina_profile(const vecina_plan* plan, const void* args, int32_t repeats,
                                 char* text, size_t size);

/* Severity 0 debug, 1 info, 2 warning. Default: VECINA_LOG=plan writes to stderr which backend
 * takes a problem that is planned, VECINA_LOG=cache why compiled kernels are not kept on disk
 * (VECINA_LOG=plan,cache both), else silence. LOG may call the library, this function too. Threads
 * that call the library at the same time may call LOG at the same time, and a call that one of them
 * has begun may still run, with its USER, when this function returns. */
VECINA_API void vecina_set_log(void (*log)(void* user, int32_t severity, const char* line),
                               void* user);

#ifdef __cplusplus
}
#endif
#endif /* VECINA_VECINA_H_ */
