/*
 * What every test module needs. No header of a kernel is used: layouts come from the BTF of the kernel that
 * the module is made for. `lab.modules.build` defines each OFFSET_type__member and SIZE_type that a source names,
 * and VERMAGIC and NAME.
 */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned long word;

#define SYMBOL_LENGTH 56 /* MODULE_NAME_LEN */
#define FIELD(object, type, member, kind) (*(kind *)((char *)(object) + OFFSET_##type##__##member))
#define OBJECT(name, type) static char name[SIZE_##type] __attribute__((aligned(64)))

int init_module(void);
void cleanup_module(void);

/* What the loader takes for `THIS_MODULE`; the kernel that it is made for knows no other layout. */
struct this_module {
    char before_name[OFFSET_module__name];
    char name[SYMBOL_LENGTH];
    char before_init[OFFSET_module__init - OFFSET_module__name - SYMBOL_LENGTH];
    int (*init)(void);
    char before_exit[OFFSET_module__exit - OFFSET_module__init - 8];
    void (*exit)(void);
    char after_exit[SIZE_module - OFFSET_module__exit - 8];
};

struct this_module __this_module __attribute__((section(".gnu.linkonce.this_module"), aligned(64))) = {
    .name = NAME,
    .init = init_module,
    .exit = cleanup_module,
};

static const char information[] __attribute__((section(".modinfo"), used, aligned(1))) =
    "license=GPL\0name=" NAME "\0vermagic=" VERMAGIC "\0retpoline=Y\0depends=\0description=changes a test guest";

#endif
