// GELU's tanh form (Hendrycks and Gimpel 2016) with the bits of libtorch's own, at half the price: libtorch computes the
// tanh, which takes most of the time, in forward and again in backward. Here forward keeps the derivative instead of its input.
//
// The sums and products are those of ATen/native/cpu/Activation.cpp, contracted as its compiler did; before the first use both
// are compared on this machine, and where one bit differs (another build of libtorch) libtorch's own is used.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#ifdef __x86_64__
#include <immintrin.h>
// From the library that libtorch takes its tanh from, and contains.
extern "C" __m512 Sleef_tanhf16_u10(__m512);
extern "C" __m256 Sleef_tanhf8_u10(__m256);
#endif

namespace {
// y = gelu(x) and d = gelu'(x) for `count` values, a multiple of STRIDE.
using Kernel = void (*)(const float* x, float* y, float* d, int64_t count);

// Both kinds of vector divide it: what libtorch would do beside its vectors does not occur.
constexpr int64_t STRIDE = 64;
constexpr float BETA = static_cast<float>(M_SQRT2 * M_2_SQRTPI * 0.5);
constexpr float KAPPA = 0.044715f;

#ifdef __x86_64__
__attribute__((target("avx512f"))) void gelu_avx512(const float* x, float* y, float* d, int64_t count) {
  const __m512 beta = _mm512_set1_ps(BETA), kappa = _mm512_set1_ps(KAPPA), kappa_3 = _mm512_set1_ps(3.0f * KAPPA);
  const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i), square = _mm512_mul_ps(v, v), cube = _mm512_mul_ps(square, v);
    const __m512 t = Sleef_tanhf16_u10(_mm512_mul_ps(beta, _mm512_fmadd_ps(kappa, cube, v)));
    const __m512 left = _mm512_mul_ps(half, v), right = _mm512_add_ps(one, t);
    _mm512_storeu_ps(y + i, _mm512_mul_ps(left, right));
    const __m512 tanh_derivative = _mm512_fnmadd_ps(t, t, one);
    const __m512 inner_derivative = _mm512_mul_ps(beta, _mm512_fmadd_ps(kappa_3, square, one));
    const __m512 right_derivative = _mm512_mul_ps(_mm512_mul_ps(left, tanh_derivative), inner_derivative);
    _mm512_storeu_ps(d + i, _mm512_add_ps(_mm512_mul_ps(half, right), right_derivative));
  }
}

__attribute__((target("avx2,fma"))) void gelu_avx2(const float* x, float* y, float* d, int64_t count) {
  const __m256 beta = _mm256_set1_ps(BETA), kappa = _mm256_set1_ps(KAPPA), kappa_3 = _mm256_set1_ps(3.0f * KAPPA);
  const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i), square = _mm256_mul_ps(v, v), cube = _mm256_mul_ps(square, v);
    const __m256 t = Sleef_tanhf8_u10(_mm256_mul_ps(beta, _mm256_fmadd_ps(kappa, cube, v)));
    const __m256 left = _mm256_mul_ps(half, v), right = _mm256_add_ps(one, t);
    _mm256_storeu_ps(y + i, _mm256_mul_ps(left, right));
    const __m256 tanh_derivative = _mm256_fnmadd_ps(t, t, one);
    const __m256 inner_derivative = _mm256_mul_ps(beta, _mm256_fmadd_ps(kappa_3, square, one));
    const __m256 right_derivative = _mm256_mul_ps(_mm256_mul_ps(left, tanh_derivative), inner_derivative);
    _mm256_storeu_ps(d + i, _mm256_add_ps(_mm256_mul_ps(half, right), right_derivative));
  }
}
#endif

bool has_the_bits(Kernel kernel) {
  at::NoGradGuard no_grad;
  const int64_t count = 64 * STRIDE;
  const at::Tensor x = at::linspace(-7.0, 7.0, count, at::kFloat), gradient = at::linspace(1.0, -3.0, count, at::kFloat);
  at::Tensor y = at::empty_like(x), d = at::empty_like(x);
  kernel(x.const_data_ptr<float>(), y.data_ptr<float>(), d.data_ptr<float>(), count);
  return at::equal(y, at::gelu(x, "tanh")) && at::equal(gradient * d, at::gelu_backward(gradient, x, "tanh"));
}

// The kernel for the instructions that libtorch uses here; none if it lacks libtorch's bits.
Kernel choose() {
#ifdef __x86_64__
  const std::string capability = at::get_cpu_capability();
  const Kernel kernel = capability == "AVX512" ? gelu_avx512 : capability == "AVX2" ? gelu_avx2 : nullptr;
  if (kernel != nullptr && has_the_bits(kernel)) return kernel;
#endif
  return nullptr;
}

struct Gelu final : torch::autograd::Function<Gelu> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, Kernel kernel) {
    at::Tensor y = at::empty_like(x), d = at::empty_like(x);
    kernel(x.const_data_ptr<float>(), y.data_ptr<float>(), d.data_ptr<float>(), x.numel());
    context->save_for_backward({d});
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0] * context->get_saved_variables()[0], at::Tensor()};
  }
};
}  // namespace

// Whether this machine uses the kernel of this file: for tests.
bool lockstep_gelu_is_ours() {
  static const Kernel kernel = choose();
  return kernel != nullptr;
}

at::Tensor lockstep_gelu(const at::Tensor& x) {
  static const Kernel kernel = choose();
  // Several threads divide the work where vectors do not end.
  const bool suits = x.is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous() && x.numel() % STRIDE == 0 &&
                     at::get_num_threads() == 1;
  const bool differentiated = at::GradMode::is_enabled() && x.requires_grad();
  return kernel != nullptr && suits && differentiated ? Gelu::apply(x, kernel) : at::gelu(x, "tanh");
}
