// What src/bindings.rs is generated from; bindings.allow says which names come in.
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
// For a backend of our own: the device that stands in for a GPU in tests.
#include "ggml-backend-impl.h"
