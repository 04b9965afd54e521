// What src/bindings.rs is generated from; bindings.allow says which names come in.
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
