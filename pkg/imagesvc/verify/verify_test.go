package verify_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/verify"
)

func TestReader(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 1000)
	good := digest.FromBytes(data)
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		r    io.Reader
		want digest.Digest
		size int64
		err  error
	}{
		"whole":                  {bytes.NewReader(data), good, int64(len(data)), nil},
		"whole, size unknown":    {bytes.NewReader(data), good, verify.Unknown, nil},
		"sha512":                 {bytes.NewReader(data), digest.SHA512.FromBytes(data), verify.Unknown, nil},
		"byte by byte":           {iotest.OneByteReader(bytes.NewReader(data)), good, int64(len(data)), nil},
		"data with EOF":          {iotest.DataErrReader(bytes.NewReader(data)), good, int64(len(data)), nil},
		"empty":                  {bytes.NewReader(nil), digest.FromBytes(nil), 0, nil},
		"short":                  {bytes.NewReader(data[1:]), good, int64(len(data)), verify.ErrTruncated},
		"long":                   {bytes.NewReader(append(data[:len(data):len(data)], 'x')), good, int64(len(data)), verify.ErrDigest},
		"other, same size":       {bytes.NewReader(append([]byte("x"), data[1:]...)), good, int64(len(data)), verify.ErrDigest},
		"other, size unknown":    {bytes.NewReader(data[1:]), good, verify.Unknown, verify.ErrDigest},
		"error of the source":    {io.MultiReader(bytes.NewReader(data[:5]), iotest.ErrReader(broken)), good, verify.Unknown, broken},
		"empty instead of whole": {bytes.NewReader(nil), good, verify.Unknown, verify.ErrDigest},
	} {
		t.Run(name, func(t *testing.T) {
			r := verify.NewReader(test.r, test.want, test.size)
			_, err := io.ReadAll(r)
			if !errors.Is(err, test.err) {
				t.Fatalf("err = %v, want %v", err, test.err)
			}
			// The verdict stays, for who asks later.
			if test.err == nil {
				if !errors.Is(r.Err(), io.EOF) || r.Drain() != nil {
					t.Errorf("later: %v, %v", r.Err(), r.Drain())
				}
			} else if !errors.Is(r.Err(), test.err) || !errors.Is(r.Drain(), test.err) {
				t.Errorf("later: %v, %v", r.Err(), r.Drain())
			}
		})
	}
}

// Who stops before the end has verified nothing, and is told so.
func TestDrainFindsWhatWasNotRead(t *testing.T) {
	data := []byte("good content and a bad rest")
	r := verify.NewReader(bytes.NewReader(data), digest.FromString("something else"), verify.Unknown)
	if _, err := io.ReadFull(r, make([]byte, 4)); err != nil || r.Err() != nil {
		t.Fatal(err, r.Err())
	}
	if err := r.Drain(); !errors.Is(err, verify.ErrDigest) {
		t.Errorf("err = %v", err)
	}
}

func TestCheckDigest(t *testing.T) {
	for _, bad := range []digest.Digest{"", "sha256:", "sha256:zz", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../etc/passwd"} {
		if verify.CheckDigest(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if err := verify.CheckDigest(digest.FromString("x")); err != nil {
		t.Error(err)
	}
}
