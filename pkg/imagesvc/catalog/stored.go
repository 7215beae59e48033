package catalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/registry/names"
)

// stored is an image in its record: JSON with two checksums at its end, of what no document of the image says, and of all that
// is before it. Records of earlier versions have none.
type stored struct {
	Image
	// NameSum is a checksum of which image it is and how it is called.
	NameSum string `json:",omitempty"`

	wrong error // what is wrong with it, from DecodeRecord
}

// The end of a record. The checksum is of the bytes before it: what other versions make of them does not matter.
const (
	sumBegin, sumEnd = `,"Sum":"`, `"}`
	sumLength        = len(sumBegin) + 2*sha256.Size + len(sumEnd)
)

// EncodeRecord implements record.Codec.
func (s *stored) EncodeRecord() ([]byte, error) {
	s.NameSum = nameSum(s.Image)
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	data = data[:len(data)-1]
	return fmt.Appendf(data, "%s%x%s", sumBegin, sha256.Sum256(data), sumEnd), nil
}

// DecodeRecord implements record.Codec. What is wrong is no error of it: it is kept beside what can be read.
func (s *stored) DecodeRecord(data []byte) error {
	if err := json.Unmarshal(data, s); err != nil {
		s.wrong = fmt.Errorf("it cannot be decoded: %w", err)
		s.Image = legible(s.Image, data)
		return nil
	}
	body, sum := data, ""
	if at := len(data) - sumLength; at > 0 && bytes.HasPrefix(data[at:], []byte(sumBegin)) && bytes.HasSuffix(data, []byte(sumEnd)) {
		body, sum = data[:at], string(data[at+len(sumBegin):len(data)-len(sumEnd)])
	}
	if actual := sha256.Sum256(body); sum != hex.EncodeToString(actual[:]) && (sum != "" || s.NameSum != "") {
		s.wrong = errAltered
	}
	return nil
}

var errAltered = errors.New("it is not as it was written")

// named tells whether the record says rightly which image it is of and how that is called.
func (s *stored) named() bool { return s.NameSum != "" && s.NameSum == nameSum(s.Image) }

func nameSum(img Image) string {
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n%s\n%q\n%q", img.ID, img.Manifest, img.Tags, img.Digests)
	return hex.EncodeToString(hash.Sum(nil))
}

var (
	listedNames = regexp.MustCompile(`"(?:Tags|Digests)":\[([^][]*)`)
	quoted      = regexp.MustCompile(`"([^"\\]+)"`)
)

// legible adds the names to an image that can be found in a record that cannot be decoded.
func legible(img Image, data []byte) Image {
	if len(img.names()) > 0 {
		return img
	}
	for _, list := range listedNames.FindAllSubmatch(data, 2) {
		for _, name := range quoted.FindAllSubmatch(list[1], -1) {
			ref, err := names.Parse(string(name[1]))
			switch {
			case err != nil || ref.String() != string(name[1]):
			case ref.Tag() != "":
				img.Tags = insert(img.Tags, ref.String())
			default:
				img.Digests = insert(img.Digests, ref.String())
			}
		}
	}
	return img
}

// Unsound is a record that is not as it was written, or does not belong where it is.
type Unsound struct {
	// Key is the record's, which is the image's ID if that is not what is wrong.
	Key     string
	Problem string
	// Image is what can be read of it, right or not. Named tells that ID, manifest and names are right.
	Image Image
	Named bool
}

// ID is the image that the record is of, as far as can be told.
func (u Unsound) ID() digest.Digest {
	if u.Named {
		return u.Image.ID
	}
	return digest.Digest(u.Key)
}

// unsound tells whether the record at a key is.
func (s *stored) unsound(key string) (Unsound, bool) {
	u := Unsound{Key: key, Image: s.Image, Named: s.named()}
	switch {
	case s.wrong != nil:
		u.Problem = s.wrong.Error()
	case s.ID.Validate() != nil:
		u.Problem = fmt.Sprintf("its image ID %q is none", s.ID)
	case s.ID.String() != key:
		u.Problem = fmt.Sprintf("it is of image %s, and stands for another", s.ID)
	default:
		return u, false
	}
	return u, true
}

// Differences names what a record says otherwise than the documents of its image, of which made was.
func Differences(recorded, made Image) []string {
	var out []string
	a, b := reflect.ValueOf(recorded), reflect.ValueOf(made)
	for i := range a.NumField() {
		switch name := a.Type().Field(i).Name; name {
		case "Tags", "Digests", "Pulled", "Pinned": // no document has them
		default:
			if !equal(a.Field(i), b.Field(i)) {
				out = append(out, name)
			}
		}
	}
	return out
}

// equal compares what would be written: there, what is empty and what is absent are the same.
func equal(a, b reflect.Value) bool {
	if k := a.Kind(); (k == reflect.Slice || k == reflect.Map) && a.Len() == 0 && b.Len() == 0 {
		return true
	}
	x, errX := json.Marshal(a.Interface())
	y, errY := json.Marshal(b.Interface())
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
