package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sluice-lb/sluice/internal/seed"
)

// What checks refer to on this node: files of TLS, and programs. healthd has the last word, at each probe and as its own user;
// here an operator hears of it before a backend goes down for it.

const maxPEM = 1 << 20 // bytes

// tlsFiles looks whether the files are what they are to be.
func (m mapping) tlsFiles(t *CheckTLS) {
	if v := m.field("ca_file"); t.CAFile != "" {
		data, ok := v.pem(t.CAFile)
		if ok && !x509.NewCertPool().AppendCertsFromPEM(data) {
			v.refuseAs(quote(t.CAFile)+", which holds no certificate", "a file of certificates in PEM form", "")
		}
	}
	if t.CertFile == "" || t.KeyFile == "" {
		return
	}
	v := m.field("cert_file")
	cert, ok := v.pem(t.CertFile)
	key, readable := m.field("key_file").pem(t.KeyFile)
	if !ok || !readable {
		return
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		v.refuseAs(fmt.Sprintf("%s and %s: %v", quote(t.CertFile), quote(t.KeyFile), err), "a certificate and its key in PEM form", "")
	}
}

func (v value) pem(path string) ([]byte, bool) {
	data, _, err := seed.ReadRegular(path, maxPEM)
	if err != nil {
		v.refuseAs(fmt.Sprintf("%s: %v", quote(path), err), "a file that can be read", "sluice-healthd reads it, as its own user")
	}
	return data, err == nil
}

// directoryOfPrograms looks whether path is a directory in which only root can put programs.
func (v value) directoryOfPrograms(path string) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		v.refuseAs(reason(path, err), "a directory", "")
	case !info.IsDir():
		v.refuseAs(quote(path)+", which is none", "a directory", "")
	default:
		v.onlyRoots(path, info)
	}
}

// program looks whether path is a program that only root can change. A link leads to another place, where the same holds.
func (v value) program(path, directory string) {
	target, err := filepath.EvalSymlinks(path)
	var info fs.FileInfo
	if err == nil {
		info, err = os.Stat(target)
	}
	switch {
	case err != nil:
		v.refuseAs(reason(path, err), "a program", "")
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		v.refuseAs(quote(path)+", which cannot be executed", "a program", "")
	case v.onlyRoots(target, info) && filepath.Dir(target) != directory:
		v.directoryOfPrograms(filepath.Dir(target))
	}
}

// onlyRoots refuses what others than root may change.
func (v value) onlyRoots(path string, info fs.FileInfo) bool {
	found, cure := "", ""
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		found, cure = fmt.Sprintf("of the user %d", owner.Uid), "chown root"
	} else if info.Mode()&0o022 != 0 {
		found, cure = fmt.Sprintf("with mode %04o", info.Mode().Perm()), "chmod go-w"
	}
	if found != "" {
		v.refuseAs(quote(path)+" "+found, "what only root may change", cure+" "+path)
	}
	return found == ""
}

// reason is what is wrong with path, without naming it twice.
func reason(path string, err error) string {
	if found, ok := err.(*fs.PathError); ok {
		err = found.Err
	}
	return fmt.Sprintf("%s: %v", quote(path), err)
}
