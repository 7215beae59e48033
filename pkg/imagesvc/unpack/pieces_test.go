package unpack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"criserver/pkg/imagesvc/unpack/tartest"
)

// manifold is a tar of all forms of entries, sparse files and long names among them.
func manifold(t testing.TB) []byte {
	var data []byte
	for i := range 20 {
		long := fmt.Sprintf("d%d/%s", i, strings.Repeat("long/", 40))
		pax, gnu := file(long+"pax", "1"), file(long+"gnu", "2")
		pax.Format, gnu.Format = tar.FormatPAX, tar.FormatGNU
		attributes := withXattr(fmt.Sprintf("d%d/x", i), "user.big", strings.Repeat("v", 1000))
		part := makeTar(t, dir(fmt.Sprintf("d%d", i)), pax, gnu, attributes, file(fmt.Sprintf("d%d/f", i), strings.Repeat("x", i*100)),
			hardlink(fmt.Sprintf("d%d/h", i), fmt.Sprintf("d%d/f", i)), symlink(fmt.Sprintf("d%d/l", i), ".."), file(fmt.Sprintf("d%d/l/behind%d", i, i), "3"),
			tartest.Device(fmt.Sprintf("d%d/dev", i), tar.TypeChar, 1, 3), file(fmt.Sprintf("d%d/.wh.gone", i), ""), file(fmt.Sprintf("implied%d/f", i), ""),
			file(fmt.Sprintf("d%d/.wh..wh.aufs", i), "not unpacked"), dir(fmt.Sprintf("d%d/", i)))
		data = append(data, part[:len(part)-1024]...) // without the end
		data = append(data, sparseGNU(fmt.Sprintf("d%d/gnu", i), 1000, 3000)...)
		data = append(data, sparsePAX(fmt.Sprintf("d%d/pax", i), 1000, 3000)...)
		data = append(data, block(fmt.Sprintf("d%d/old", i), 0, 5, nil)...)
		data = append(data, padded("12345")...)
		data = append(data, block(fmt.Sprintf("d%d/olddir/", i), 0, 600, nil)...) // to tar.Reader it has no content
		data = append(data, block(fmt.Sprintf("d%d/h2", i), tar.TypeLink, 5000, func(b []byte) { copy(b[157:], fmt.Sprintf("d%d/f", i)) })...)
	}
	return append(data, makeTar(t, file("last", "1"))...)
}

// picture tells all of a tree but the times of access.
func picture(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		content := ""
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			content, err = os.Readlink(path)
		}
		rel := strings.TrimPrefix(path, root)
		if !strings.HasSuffix(rel, "/gone") && rel != "" && !strings.HasPrefix(rel, "/implied") && !strings.Contains(rel, "/long") || info.Mode().IsRegular() {
			content += fmt.Sprint(st.Mtim)
		}
		out = append(out, fmt.Sprintf("%s %o %d:%d %d %d %.300q", rel, st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev, content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The writer gets the same in one piece as in many.
func TestApplyInPieces(t *testing.T) {
	needRoot(t)
	data := manifold(t)
	whole := t.TempDir()
	want, err := Apply(t.Context(), whole, bytes.NewReader(data), Limits{Entries: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	before := pieceHeaders
	defer func() { pieceHeaders = before }()
	for _, pieceHeaders = range []int64{1, 2000, 10_000} {
		root := t.TempDir()
		got, err := Apply(t.Context(), root, bytes.NewReader(data), Limits{Entries: 10_000})
		if err != nil {
			t.Fatalf("pieces of %d: %v", pieceHeaders, err)
		}
		if got.Usage != want.Usage || !slices.Equal(got.Implied, want.Implied) {
			t.Errorf("pieces of %d: %v, want %v", pieceHeaders, got.Usage, want.Usage)
		}
		is, was := picture(t, root), picture(t, whole)
		for i := range min(len(is), len(was)) {
			if is[i] != was[i] {
				t.Errorf("pieces of %d: %s, want %s", pieceHeaders, is[i], was[i])
			}
		}
		if len(is) != len(was) || len(is) < 20*12 {
			t.Errorf("pieces of %d: %d names, want %d", pieceHeaders, len(is), len(was))
		}
	}
}
