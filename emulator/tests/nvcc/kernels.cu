// The sources of the .ptx files beside this one, each compiled on its own: nvcc -ptx -arch=… -DNAME.
// Their launches and expected results stand in the headers of the .ptx files.
#include <cstdint>

#ifdef SAXPY
extern "C" __global__ void saxpy(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
#endif
#ifdef REDUCE
extern "C" __global__ void reduce(const int* in, int* out) {
    __shared__ int parts[32];
    int v = in[blockIdx.x * blockDim.x + threadIdx.x];
    for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(~0u, v, d);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0;
        for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
        if (threadIdx.x == 0) out[blockIdx.x] = v;
    }
}
#endif
#ifdef TRANSPOSE
extern "C" __global__ void transpose(const uint16_t* in, uint16_t* out, int rows, int columns) {
    __shared__ uint16_t tile[32][33];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < columns && y + k < rows) tile[threadIdx.y + k][threadIdx.x] = in[(y + k) * columns + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x, y = blockIdx.x * 32 + threadIdx.y;
    for (int k = 0; k < 32; k += 8)
        if (x < rows && y + k < columns) out[(y + k) * rows + x] = tile[threadIdx.x][threadIdx.y + k];
}
#endif
#ifdef HISTOGRAM
extern "C" __global__ void histogram(const unsigned char* in, unsigned* out, int n) {
    extern __shared__ unsigned bins[];
    for (int i = threadIdx.x; i < 16; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&bins[in[i] & 15], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < 16; i += blockDim.x) atomicAdd(&out[i], bins[i]);
}
#endif
#ifdef SCAN
extern "C" __global__ void scan(long long* data) {
    __shared__ long long a[2][128];
    int t = threadIdx.x, from = 0;
    a[0][t] = data[t];
    __syncthreads();
    for (int d = 1; d < 128; d *= 2, from ^= 1) {
        a[from ^ 1][t] = a[from][t] + (t >= d ? a[from][t - d] : 0);
        __syncthreads();
    }
    data[t] = a[from][t];
}
#endif
#ifdef MATMUL
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int n) {
    __shared__ float ta[8][8], tb[8][8];
    int x = blockIdx.x * 8 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y;
    float sum = 0;
    for (int k = 0; k < n; k += 8) {
        ta[threadIdx.y][threadIdx.x] = a[y * n + k + threadIdx.x];
        tb[threadIdx.y][threadIdx.x] = b[(k + threadIdx.y) * n + x];
        __syncthreads();
        for (int i = 0; i < 8; i++) sum += ta[threadIdx.y][i] * tb[i][threadIdx.x];
        __syncthreads();
    }
    c[y * n + x] = sum;
}
#endif
#ifdef SOFTMAX
extern "C" __global__ void softmax(const float* in, float* out, int n) {
    float m = -INFINITY, s = 0;
    const float* row = in + blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += 32) m = fmaxf(m, row[i]);
    for (int d = 16; d; d /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
    for (int i = threadIdx.x; i < n; i += 32) s += expf(row[i] - m);
    for (int d = 16; d; d /= 2) s += __shfl_xor_sync(~0u, s, d);
    for (int i = threadIdx.x; i < n; i += 32) out[blockIdx.x * n + i] = expf(row[i] - m) / s;
}
#endif
#ifdef HALVES
extern "C" __global__ void halves(const unsigned* x, const unsigned* y, unsigned* h, unsigned* b) {
    int i = threadIdx.x;
    unsigned half = 0x38003800, floor = 0x40003F80, v;
    asm("{fma.rn.f16x2 %0, %1, %1, %2;}" : "=r"(v) : "r"(x[i]), "r"(half));
    h[i] = v;
    asm("{ .reg .b32 t; mul.bf16x2 t, %1, %1; max.bf16x2 %0, t, %2; }" : "=r"(v) : "r"(y[i]), "r"(floor));
    b[i] = v;
}
#endif
#ifdef STRUCTS
struct Item { int a; short b; char c; double d; };
__device__ __noinline__ Item change(Item item, int which) {
    switch (which) {
        case 0: item.a += 1; break;
        case 1: item.b -= 2; break;
        case 2: item.c ^= 0x55; break;
        case 3: item.d *= 3; break;
        case 4: item.a = item.b; item.d = -item.d; break;
        default: item.c = 9;
    }
    return item;
}
extern "C" __global__ void structs(Item item, double* out) {
    Item changed = change(item, threadIdx.x % 6);
    out[threadIdx.x] = changed.a + 10.0 * changed.b + 100.0 * changed.c + 1000.0 * changed.d;
}
#endif
#ifdef DOUBLES
extern "C" __global__ void doubles(const double* x, double* out) {
    int i = threadIdx.x;
    double table[8];
    for (int k = 0; k < 8; k++) table[k] = x[i] / (k + 3);
    double v = table[(i * 5) % 8];
    out[i] = sqrt(v) + floor(v) + fma(v, v, -1.0) + (double)(long long)v;
}
#endif
#ifdef CHECKSUM
extern "C" __global__ void checksum(const uchar4* in, unsigned* out) {
    unsigned crc = ~0u;
    uchar4 v = in[threadIdx.x];
    unsigned char bytes[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; i++) {
        crc ^= bytes[i];
        for (int k = 0; k < 8; k++) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
    }
    out[threadIdx.x] = ~crc;
}
#endif
#ifdef DIVERGE
extern "C" __global__ void diverge(const unsigned* in, unsigned* out) {
    unsigned v = in[threadIdx.x], n = 0;
    while (v != 1) {
        if (v % 2) v = 3 * v + 1; else v /= 2;
        if (++n > 200) break;
        if (n == 50) { v += 1; continue; }
    }
    out[threadIdx.x] = n;
}
#endif
#ifdef CLUSTER
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster(int* out) {
    __shared__ int value;
    unsigned rank = __clusterRelativeBlockRank();
    if (threadIdx.x == 0) value = 10 + rank;
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    int other = *(int*)__cluster_map_shared_rank(&value, rank ^ 1);
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    if (threadIdx.x == 0) out[blockIdx.x] = other;
}
#endif
#ifdef TICKET
// The last CTA to finish adds up what all of them wrote.
__device__ unsigned tickets = 0;
extern "C" __global__ void ticket(const int* in, int* parts, int* out) {
    __shared__ bool last;
    int v = in[blockIdx.x * 32 + threadIdx.x];
    v = __reduce_add_sync(~0u, v);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = v;
        __threadfence();
        last = atomicAdd(&tickets, 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        for (unsigned i = 0; i < gridDim.x; i++) sum += ((volatile int*)parts)[i];
        out[0] = sum;
    }
}
#endif
