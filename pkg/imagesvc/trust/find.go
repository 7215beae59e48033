package trust

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// Where cosign puts signatures: of old into a manifest with the tag "sha256-<hex>.sig", one layer each; since version 3
// into manifests of their own whose subject is the image, as sigstore bundles. Version 2 can put layers of the old form
// there too. So the media type of a layer tells its form, wherever its manifest was found.
const (
	mediaTypeSimpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	mediaTypeBundlePrefix  = "application/vnd.dev.sigstore.bundle" // ".v0.3+json", "+json;version=0.2"
	artifactTypeOldForm    = "application/vnd.dev.cosign.artifact.sig.v1+json"
)

// annotationPredicate of a referrer tells what its bundle says of the image.
const annotationPredicate = "dev.sigstore.bundle.predicateType"

// Bounds of what anybody who may push can put beside an image.
const (
	maxSignatures = 64      // how many are looked at
	maxSignature  = 1 << 20 // bytes of a payload or bundle
	maxManifest   = 4 << 20 // bytes, as registries have it
)

// maxErrors is how many fetches may fail: one layer that is gone does not hide the others, but a registry that is down
// need not be asked for all of them.
const maxErrors = 3

// finder looks for one good signature of an image. It is for one goroutine.
type finder struct {
	src        Source
	image      digest.Digest
	identities []*identity
	report     report
	errs       []error
}

// search looks everywhere until a signature is good. Without one, an error is the source's first: there may be a good
// signature that could not be fetched.
func (f *finder) search(ctx context.Context) (bool, error) {
	if f.byTag(ctx) || f.byReferrers(ctx) {
		return true, nil
	}
	if len(f.errs) > 0 {
		return false, f.errs[0]
	}
	return false, context.Cause(ctx)
}

// failed notes an error of the source.
func (f *finder) failed(err error) bool {
	if err != nil {
		f.errs = append(f.errs, err)
	}
	return err != nil
}

func (f *finder) givesUp(ctx context.Context) bool {
	return len(f.errs) >= maxErrors || ctx.Err() != nil
}

func (f *finder) byTag(ctx context.Context) bool {
	tag := f.image.Algorithm().String() + "-" + f.image.Encoded() + ".sig"
	_, data, found, err := f.src.ManifestByTag(ctx, tag)
	if f.failed(err) || !found {
		return false
	}
	return f.manifest(ctx, "the .sig tag", data)
}

func (f *finder) byReferrers(ctx context.Context) bool {
	all, err := f.src.Referrers(ctx, f.image)
	if f.failed(err) {
		return false
	}
	all = slices.DeleteFunc(slices.Clone(all), func(d ocispec.Descriptor) bool { return !maybeSignature(d) })
	if len(all) > maxSignatures {
		f.report.add("referrers", fmt.Errorf("only the first %d of %d are looked at", maxSignatures, len(all)))
		all = all[:maxSignatures]
	}
	for _, d := range all {
		if f.givesUp(ctx) {
			return false
		}
		name := fmt.Sprintf("referrer %q", d.Digest)
		if err := check(d, maxManifest); err != nil {
			f.report.add(name, err)
			continue
		}
		data, err := f.src.Manifest(ctx, d.Digest)
		if !f.failed(err) && f.manifest(ctx, name, data) {
			return true
		}
	}
	return false
}

// maybeSignature leaves out what says to be something else. Clients that keep the list of referrers themselves, for a
// registry that does not, write the type of the configuration, which is empty, where that of the artifact belongs.
func maybeSignature(d ocispec.Descriptor) bool {
	switch d.ArtifactType {
	case "", ocispec.MediaTypeEmptyJSON, artifactTypeOldForm:
	default:
		if !strings.HasPrefix(d.ArtifactType, mediaTypeBundlePrefix) {
			return false
		}
	}
	predicate := d.Annotations[annotationPredicate]
	return predicate == "" || predicate == signPredicate
}

func isBundle(layer ocispec.Descriptor) bool {
	return strings.HasPrefix(layer.MediaType, mediaTypeBundlePrefix)
}

// check says why something cannot be fetched.
func check(d ocispec.Descriptor, most int64) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	if d.Size < 0 || d.Size > most {
		return fmt.Errorf("it has %d bytes, at most %d are read", d.Size, most)
	}
	return nil
}

// manifest looks at the signatures in one.
func (f *finder) manifest(ctx context.Context, name string, data []byte) bool {
	if len(data) > maxManifest {
		f.report.add(name, fmt.Errorf("it has %d bytes, at most %d are read", len(data), maxManifest))
		return false
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		f.report.add(name, fmt.Errorf("decode manifest: %w", err))
		return false
	}
	for i, layer := range m.Layers {
		if !isBundle(layer) && layer.MediaType != mediaTypeSimpleSigning {
			continue
		}
		f.report.found++
		if f.report.found > maxSignatures || f.givesUp(ctx) {
			continue
		}
		name := fmt.Sprintf("signature %d of %s", i+1, name)
		if err := check(layer, maxSignature); err != nil {
			f.report.add(name, err)
			continue
		}
		content, err := f.src.Blob(ctx, layer)
		if !f.failed(err) && f.signature(ctx, name, layer, content) {
			return true
		}
	}
	return false
}

// signature tells whether one is of any identity.
func (f *finder) signature(ctx context.Context, name string, layer ocispec.Descriptor, content []byte) bool {
	var c candidate
	err := guarded(func() (err error) {
		if isBundle(layer) {
			c, err = readBundle(f.image, content)
		} else {
			c, err = readSimpleSigning(f.image, layer, content)
		}
		return err
	})
	if err != nil {
		f.report.add(name, err)
		return false
	}
	var manifest []byte
	if c.overManifest() {
		manifest, err = f.src.Manifest(ctx, f.image)
		if f.failed(err) {
			return false
		}
		if got := f.image.Algorithm().FromBytes(manifest); got != f.image {
			f.failed(fmt.Errorf("manifest has digest %s, want %s", got, f.image))
			return false
		}
	}
	for _, id := range f.identities {
		err := guarded(func() error { return verifyBy(c, id, manifest) })
		if err == nil {
			return true
		}
		f.report.add(name+" is not by "+id.name, err)
	}
	return false
}

// candidate is a signature that says to be of the image.
type candidate interface {
	// overManifest tells whether it is over the image's manifest, not over something with the manifest's digest in it.
	overManifest() bool
	// entity is the signature as an identity needs it, and what it must be over.
	entity(id *identity, manifest []byte) (verify.SignedEntity, verify.ArtifactPolicyOption, error)
	// accept looks at what was signed, after it was found to be.
	accept(r *verify.VerificationResult) error
}

// verifyBy returns nil if the signature is the identity's.
func verifyBy(c candidate, id *identity, manifest []byte) error {
	entity, artifact, err := c.entity(id, manifest)
	if err != nil {
		return err
	}
	result, err := id.verifier.Verify(entity, verify.NewPolicy(artifact, id.policy))
	if err != nil {
		return err
	}
	return c.accept(result)
}

// guarded makes an error of a panic: the parsers of bundles and of log entries see what anybody may have pushed.
func guarded(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed: %v", r)
		}
	}()
	return do()
}
