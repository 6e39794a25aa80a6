//go:build linux

package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// moduleDir is where the guest finds its kernel modules, named so that their order is that of loading.
const moduleDir = "lib/modules"

// kernel is an unpacked kernel package.
type kernel struct {
	image   string            // the file that QEMU boots
	modules map[string]string // file by module name
	builtin map[string]bool
}

func findKernel(tree string) (*kernel, error) {
	k := &kernel{modules: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		name := d.Name()
		switch {
		case err != nil || d.IsDir():
			return err
		case strings.HasPrefix(name, "vmlinuz-"):
			k.image = path
		case strings.HasSuffix(name, ".ko.xz"):
			k.modules[moduleName(name)] = path
		case name == "modules.builtin":
			text, err := os.ReadFile(path)
			for _, m := range strings.Fields(string(text)) {
				k.builtin[moduleName(m)] = true
			}
			return err
		}
		return nil
	})
	if err == nil && k.image == "" {
		err = errors.New("no vmlinuz in it")
	}
	if err != nil {
		return nil, fmt.Errorf("kernel in %s: %w", tree, err)
	}
	return k, nil
}

// moduleName is the name of a module by its file: dashes and underscores are the same to the kernel.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// load adds to files a module, after those that it depends on. loaded are the names that are there already.
func (k *kernel) load(name string, files *[]file, loaded map[string]bool) error {
	if loaded[name] || k.builtin[name] {
		return nil
	}
	loaded[name] = true
	path, ok := k.modules[name]
	if !ok {
		return fmt.Errorf("kernel module %s: neither in the package nor built in", name)
	}
	code, err := output("", "xz", "-dc", path)
	if err != nil {
		return err
	}
	needs, err := depends([]byte(code))
	if err != nil {
		return fmt.Errorf("kernel module %s: %w", path, err)
	}
	for _, n := range needs {
		if err := k.load(n, files, loaded); err != nil {
			return err
		}
	}
	*files = append(*files, file{fmt.Sprintf("%s/%03d-%s.ko", moduleDir, len(*files), name), []byte(code)})
	return nil
}

// depends reads in a module's own description which others it needs: the field depends of its section .modinfo.
func depends(module []byte) ([]string, error) {
	e, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	s := e.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			for _, n := range strings.Split(string(list), ",") {
				needs = append(needs, strings.ReplaceAll(n, "-", "_"))
			}
		}
	}
	return needs, nil
}

// file is one executable file of an initramfs.
type file struct {
	path string // without leading slash
	data []byte
}

// archive writes files as a cpio archive in the format newc, with the directories that they are in and those in dirs
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func archive(dirs []string, files []file) []byte {
	var out bytes.Buffer
	inode := 0
	entry := func(name string, mode int, data []byte) {
		inode++
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		out.Write(make([]byte, -out.Len()&3))
		out.Write(data)
		out.Write(make([]byte, -out.Len()&3))
	}
	var made []string
	var mkdir func(dir string)
	mkdir = func(dir string) {
		if dir == "." || slices.Contains(made, dir) {
			return
		}
		mkdir(filepath.Dir(dir))
		made = append(made, dir)
		entry(dir, 0o040755, nil)
	}
	for _, d := range dirs {
		mkdir(d)
	}
	for _, f := range files {
		mkdir(filepath.Dir(f.path))
		entry(f.path, 0o100755, f.data)
	}
	entry("TRAILER!!!", 0, nil)
	return out.Bytes()
}
